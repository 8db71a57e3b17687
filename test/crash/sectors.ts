/**
 * A storage that passes on whole sectors only. A host keeps a file in pages and writes sectors as they are there: a
 * crash may lose what became of a sector, but it never puts a later part of one over what was there before an earlier.
 */

import { PassingStorage } from '../../lib/storage/passing.js'

const SECTOR = 512

export class WholeSectors extends PassingStorage {
  override write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    if (length === 0) return
    const first = offset - (offset % SECTOR)
    const end = offset + length
    const last = Math.max(end, Math.min(this.size(), Math.ceil(end / SECTOR) * SECTOR))
    const sectors = new Uint8Array(last - first)
    this.inner.read(sectors, 0, sectors.length, first)
    sectors.set(buffer.subarray(at, at + length), offset - first)
    this.inner.write(sectors, 0, sectors.length, first)
  }

  #zero(how: 'zero' | 'punch', offset: number, length: number): void {
    const end = Math.min(offset + length, this.size())
    const first = Math.ceil(offset / SECTOR) * SECTOR
    const last = end - (end % SECTOR)
    if (first > last) {
      this.write(new Uint8Array(end - offset), 0, end - offset, offset)
      return
    }
    this.write(new Uint8Array(SECTOR), 0, first - offset, offset)
    if (last > first) this.inner[how](first, last - first)
    this.write(new Uint8Array(SECTOR), 0, end - last, last)
  }

  override punch(offset: number, length: number): void {
    this.#zero('punch', offset, length)
  }

  override zero(offset: number, length: number): void {
    this.#zero('zero', offset, length)
  }
}
