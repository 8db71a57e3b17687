/**
 * The drivers of the formats, apart from all else that `registry.ts` knows of them: a thread that does nothing but read
 * and write loads those of the layers that it works on, and has several MiB less for it.
 */

import { VdiskError } from '../util/errors.js'
import type { Driver, Format, LayerContext } from './driver.js'

type Attach = Format['attach']

/** Where the driver of each format is, by the format's name. */
const MODULES: { readonly [format: string]: () => Promise<{ readonly attach: unknown }> } = {
  qcow2: () => import('./qcow2/attach.js'),
  vhdx: () => import('./vhdx/attach.js'),
  vhd: () => import('./vhd/attach.js'),
  parallels: () => import('./parallels/attach.js'),
  raw: () => import('./flat.js'),
}

const loaded = new Map<string, Attach>()

/** Makes the driver of a format known to this thread. */
export function addDriver(format: string, attach: Attach): void {
  loaded.set(format, attach)
}

/** Loads the drivers of these formats, where this thread does not have them yet. */
export async function loadDrivers(formats: Iterable<string>): Promise<void> {
  for (const format of new Set(formats)) {
    if (loaded.has(format)) continue
    const module = await MODULES[format]?.()
    if (module) addDriver(format, module.attach as Attach)
  }
}

/**
 * A driver for the calling thread.
 * @param layout what the format's `open` gave
 * @throws INTERNAL where the format's driver was not loaded
 */
export function attachDriver(format: string, layout: unknown, context: LayerContext): Driver {
  const attach = loaded.get(format)
  if (!attach) throw new VdiskError('INTERNAL', `the driver of format ${format} was not loaded`)
  return attach(layout, context)
}
