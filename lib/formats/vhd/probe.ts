/** Whether a file is a VHD, by its first and last bytes. */

import type { Probe } from '../driver.js'
import { DiskType, decodeFooter, FOOTER_BYTES, looksLikeFooter, OLD_FOOTER_BYTES } from './footer.js'
import { fixedLayout } from './open.js'

/** The footer is at the end, in 512 or 511 bytes; what grows has a copy at the beginning. */
export function probeVhd({ head, tail }: Probe): boolean {
  return (
    looksLikeFooter(tail, tail.length - FOOTER_BYTES) ||
    looksLikeFooter(tail, tail.length - OLD_FOOTER_BYTES) ||
    looksLikeFooter(head, 0)
  )
}

/** True where the end is the sound footer of a fixed disk, whose data begins with the file's first byte. */
export function endsAsFixed(probe: Probe): boolean {
  return [FOOTER_BYTES, OLD_FOOTER_BYTES].some((length) => isFixedFooter(probe, length))
}

function isFixedFooter({ path, size, tail }: Probe, length: number): boolean {
  const at = tail.length - length
  if (!looksLikeFooter(tail, at)) return false
  const bytes = new Uint8Array(FOOTER_BYTES)
  bytes.set(tail.subarray(at))
  const offset = size - length
  try {
    const footer = decodeFooter(bytes, { path, offset })
    return footer.diskType === DiskType.FIXED && fixedLayout(path, { footer, bytes, offset, length }).size > 0
  } catch {
    return false
  }
}
