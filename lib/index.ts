/** The library: what programs use that open virtual disks themselves, without a mount. */

export type {
  BitmapFacts,
  ByteRange,
  CheckTotals,
  Facts,
  Finding,
  Repair,
  Severity,
  SnapshotFacts,
} from './formats/driver.js'
export type { OptionSpec } from './formats/options.js'
export { addBitmap, clearBitmap, eachBitmapExtent, listBitmaps, removeBitmap } from './image/bitmaps.js'
export { type CheckReport, type CheckRequest as CheckOptions, checkImage as check } from './image/check.js'
export { type CommitOptions, commitImage as commit } from './image/commit.js'
export { type CompareOptions, type Comparison, compareImages as compare, type Difference } from './image/compare.js'
export type { CopyProgress as ConvertProgress } from './image/convert/run.js'
export { chainInfo, type ImageInfo, imageInfo as info } from './image/info.js'
export type { MapEntry } from './image/map.js'
export type { Secret as Passphrase } from './image/open.js'
export {
  type ConvertOptions,
  type CreateOptions,
  convert,
  createImage,
  type Disk,
  type FormatInfo,
  type FormatOptions,
  formats,
  type OpenOptions,
  openImage,
} from './image/public.js'
export { type RebaseOptions, rebaseImage as rebase } from './image/rebase.js'
export { type ResizeRequest as ResizeOptions, resizeImage as resize } from './image/resize.js'
export {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
  type SnapshotOptions,
} from './image/snapshots.js'
export { type ErrorCode, VdiskError } from './util/errors.js'
