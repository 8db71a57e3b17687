/** A change of a few pages of a VHDX that nobody has open: through the log, so that all of it is there or nothing. */

import type { Storage } from '../../storage/storage.js'
import { NIL_GUID, randomGuid } from '../../util/guid.js'
import { updateHeaders } from './header.js'
import type { VhdxLayout } from './layout.js'
import { LOG_SECTOR } from './log.js'
import { encodeEntry } from './log-entry.js'

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

  /** Brings the pages into the file through the log, which is empty before and after. @param end of all structures */
  commit({ header }: VhdxLayout, end: number): void {
    const storage = this.#storage
    const barrier = () => storage.sync()
    const guid = randomGuid()
    const entry = new Uint8Array(LOG_SECTOR * (1 + this.#pages.size))
    const offsets = [...this.#pages.keys()]
    offsets.forEach((offset, i) => {
      entry.set(this.#pages.get(offset)!, LOG_SECTOR * (1 + i))
    })
    encodeEntry(entry, { tail: 0, sequence: 1, guid, fileSize: storage.size(), end }, offsets)
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
