/** The driver for what `Format.open` found. */

import type { Driver, LayerContext } from '../driver.js'
import { Qcow2Driver } from './driver.js'
import type { Qcow2Layout } from './layout.js'

export function attach(layout: Qcow2Layout, context: LayerContext): Driver {
  return new Qcow2Driver(layout, context)
}
