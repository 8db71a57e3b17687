/**
 * The footer at the end of a VHD and its copy at the beginning cannot change in one moment. A change that was interrupted
 * between the two (another size, another dynamic disk header) leaves two that differ in just that. All that either of them
 * refers to is there then, and the one at the end counts; whoever writes next, or check, brings the copy up to it.
 */

import type { Footer } from './footer.js'
import { diskSize } from './geometry.js'

export const sizeOf = (footer: Footer) => diskSize(footer.creatorApplication, footer.currentSize, footer)

/** A field that decides what the disk is; the others are remarks. */
export interface DecidingField {
  readonly name: string
  of(footer: Footer): string
  /** A change of this program can leave the two with different values. */
  readonly changes: boolean
}

const DECIDING: readonly DecidingField[] = [
  { name: 'the size of the disk', of: (footer) => `${sizeOf(footer)} bytes`, changes: true },
  { name: 'the disk type', of: ({ diskType }) => String(diskType), changes: false },
  { name: 'Data Offset', of: ({ dataOffset }) => String(dataOffset ?? 'none'), changes: true },
  { name: 'Unique Id', of: ({ uniqueId }) => uniqueId, changes: false },
]

/** The deciding fields in which two footers differ. */
export function differences(a: Footer, b: Footer): readonly DecidingField[] {
  return DECIDING.filter(({ of }) => of(a) !== of(b))
}

/** True where a change was interrupted between the two. */
export function isBetween(end: Footer, copy: Footer): boolean {
  const differing = differences(end, copy)
  return differing.length > 0 && differing.every(({ changes }) => changes)
}
