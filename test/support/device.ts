/** A storage that keeps its size, as a block device does, and where what an image has not written yet is not zeros. */

import type { MemoryStorage } from '../../lib/storage/memory.js'
import { PassingStorage } from '../../lib/storage/passing.js'
import { VdiskError } from '../../lib/util/errors.js'

export class Device extends PassingStorage<MemoryStorage> {
  /** @param size bytes, not less than there are: what is new holds old data */
  constructor(inner: MemoryStorage, size = inner.size()) {
    super(inner)
    const end = inner.size()
    inner.write(new Uint8Array(size - end).fill(0x5a), 0, size - end, end)
  }

  override get fixedSize(): boolean {
    return true
  }

  override write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    if (offset + length > this.size())
      throw new VdiskError('NO_SPACE', `cannot write ${this.path} at byte ${offset}: no space left on the device`)
    super.write(buffer, at, length, offset)
  }

  override truncate(size: number): void {
    const found = this.size()
    if (size !== found) throw new VdiskError(size > found ? 'NO_SPACE' : 'UNSUPPORTED', `it has ${found} bytes`)
  }
}
