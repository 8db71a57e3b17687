/** The driver for what `Format.open` found: a fixed disk, or one of blocks. */

import type { Driver, LayerContext } from '../driver.js'
import { FlatDriver } from '../flat.js'
import { BlockDriver } from './driver.js'
import type { VhdLayout } from './layout.js'

export function attach(layout: VhdLayout, context: LayerContext): Driver {
  return layout.blocks ? new BlockDriver(layout, context) : new FlatDriver(layout.size, context)
}
