/** A change of a few pages of a VHDX that nobody has open: through the log, so that all of it is there or nothing. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { NIL_GUID, randomGuid } from '../../util/guid.js'
import { updateHeaders } from './header.js'
import type { VhdxLayout } from './layout.js'
import { LOG_SECTOR } from './log.js'
import { encodeEntry, PAGES_PER_ENTRY } from './log-entry.js'

/** Pages that one log entry changes. */
export class LoggedPages {
  readonly #storage: Storage
  readonly #pages = new Map<number, Uint8Array>()

  constructor(storage: Storage) {
    this.#storage = storage
  }

  read(offset: number, length: number): Uint8Array {
    return Uint8Array.from({ length }, (_, i) => {
      const page = this.#page(offset + i)
      return page[(offset + i) % LOG_SECTOR]!
    })
  }

  put(offset: number, bytes: Uint8Array): void {
    bytes.forEach((byte, i) => {
      this.#page(offset + i)[(offset + i) % LOG_SECTOR] = byte
    })
  }

  #page(offset: number): Uint8Array {
    const start = offset - (offset % LOG_SECTOR)
    let page = this.#pages.get(start)
    if (!page) {
      page = new Uint8Array(LOG_SECTOR)
      this.#storage.read(page, 0, LOG_SECTOR, start)
      this.#pages.set(start, page)
    }
    return page
  }

  /** @throws NO_SPACE where the log cannot take all pages in one entry */
  checkRoom({ header, path }: Pick<VhdxLayout, 'header' | 'path'>): void {
    const most = Math.min(PAGES_PER_ENTRY, header.logLength / LOG_SECTOR - 1)
    const { size } = this.#pages
    if (size <= most) return
    throw new VdiskError('NO_SPACE', `${size} pages change at once, and its log takes ${most}`, { path })
  }

  /**
   * Brings the pages into the file through the log, which is empty before and after.
   * @param end of all structures
   * @throws NO_SPACE as `checkRoom`, before anything is written
   */
  commit(layout: Pick<VhdxLayout, 'header' | 'path'>, end: number): void {
    this.checkRoom(layout)
    const { header } = layout
    const storage = this.#storage
    const barrier = () => storage.sync()
    const guid = randomGuid()
    const entry = new Uint8Array(LOG_SECTOR * (1 + this.#pages.size))
    const offsets = [...this.#pages.keys()]
    offsets.forEach((offset, i) => {
      entry.set(this.#pages.get(offset)!, LOG_SECTOR * (1 + i))
    })
    const fileSize = storage.size()
    // A device may end inside of the last block: nobody is to make it longer for a replay.
    encodeEntry(entry, { tail: 0, sequence: 1, guid, fileSize, end: Math.min(end, fileSize) }, offsets)
    barrier()
    storage.write(entry, 0, entry.length, header.logOffset)
    barrier()
    updateHeaders(storage, { logGuid: guid }, barrier)
    for (const [offset, page] of this.#pages) storage.write(page, 0, LOG_SECTOR, offset)
    barrier()
    updateHeaders(storage, { logGuid: NIL_GUID }, barrier)
    barrier()
  }
}
