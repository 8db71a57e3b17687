/** The driver for what `Format.open` found. */

import type { Driver, LayerContext } from '../driver.js'
import { BlockDriver } from './driver.js'
import type { VhdxLayout } from './layout.js'

export function attach(layout: VhdxLayout, context: LayerContext): Driver {
  return new BlockDriver(layout, context)
}
