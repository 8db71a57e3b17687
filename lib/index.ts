/** The library: what programs use that open virtual disks themselves, without a mount. */

export type {
  BitmapFacts,
  ByteRange,
  CheckTotals,
  Facts,
  Finding,
  Format,
  Repair,
  SnapshotFacts,
} from './formats/driver.js'
export type { OptionSpec } from './formats/options.js'
export { findFormat, formats } from './formats/registry.js'
export { addBitmap, clearBitmap, eachBitmapExtent, listBitmaps, removeBitmap } from './image/bitmaps.js'
export { type CheckReport, type CheckRequest, checkImage } from './image/check.js'
export { type CreateOptions, createImage } from './image/create.js'
export type { Image } from './image/image.js'
export { chainInfo, type ImageInfo, imageInfo } from './image/info.js'
export type { MapEntry } from './image/map.js'
export { type OpenOptions, openImage } from './image/open.js'
export { type ResizeRequest, resizeImage } from './image/resize.js'
export {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
  type SnapshotOptions,
} from './image/snapshots.js'
export { type ErrorCode, VdiskError } from './util/errors.js'
