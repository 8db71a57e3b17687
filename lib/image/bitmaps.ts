/** The dirty bitmaps of an image that nobody has mounted. */

import type { BitmapFacts, BitmapTools, ByteRange } from '../formats/driver.js'
import type { Storage } from '../storage/storage.js'
import { VdiskError } from '../util/errors.js'
import { closeLayers, openChain } from './chain.js'
import { chainOptions } from './open.js'

export interface BitmapOptions {
  /** Default: found by looking at the content. */
  readonly format?: string | undefined
  readonly backingDirs?: readonly string[]
  readonly warn?: (message: string) => void
}

type Use<T> = (tools: BitmapTools<unknown>, layout: unknown, files: readonly Storage[]) => T

function withBitmaps<T>(path: string, readOnly: boolean, options: BitmapOptions, use: Use<T>): T {
  const layers = openChain(path, { ...chainOptions({ ...options, readOnly }), parents: false })
  try {
    const { format, opened, storage, files } = layers[0]!
    if (!format.bitmaps)
      throw new VdiskError('UNSUPPORTED', `images of format ${format.name} have no bitmaps`, { path })
    return use(format.bitmaps, opened.layout, [storage, ...files])
  } finally {
    closeLayers(layers)
  }
}

/** @throws VdiskError, IN_USE where somebody writes the image */
export function listBitmaps(path: string, options: BitmapOptions = {}): BitmapFacts[] {
  return withBitmaps(path, true, options, (tools, layout, files) => tools.list(layout, files))
}

/** Calls back for every changed range, in order. @throws NOT_FOUND; as `listBitmaps` */
export function eachBitmapExtent(
  path: string,
  name: string,
  visit: (range: ByteRange) => void,
  options: BitmapOptions = {},
): void {
  withBitmaps(path, true, options, (tools, layout, files) => {
    for (const range of tools.extents(layout, files, name)) visit(range)
  })
}

/** @param granularity bytes that one bit stands for. @returns the new bitmap's name. @throws EXISTS, USAGE, NO_SPACE */
export function addBitmap(
  path: string,
  name: string | undefined,
  granularity: number | undefined,
  options: BitmapOptions = {},
): string {
  return withBitmaps(path, false, options, (tools, layout, files) => tools.add(layout, files, name, granularity))
}

/** @throws NOT_FOUND */
export function clearBitmap(path: string, name: string, options: BitmapOptions = {}): void {
  withBitmaps(path, false, options, (tools, layout, files) => tools.clear(layout, files, name))
}

/** @throws NOT_FOUND */
export function removeBitmap(path: string, name: string, options: BitmapOptions = {}): void {
  withBitmaps(path, false, options, (tools, layout, files) => tools.remove(layout, files, name))
}
