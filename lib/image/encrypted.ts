/**
 * Data that is encrypted sector by sector: reading and writing any bytes of it where it lies. What the caller hands in to
 * be written is never changed.
 */

import { CIPHER_SECTOR as SECTOR, type SectorCipher } from '../formats/driver.js'
import type { Storage } from '../storage/storage.js'

/** Bytes that are encrypted and written at a time. */
const CHUNK = 1 << 20

export const sectorStart = (offset: number) => offset - (offset % SECTOR)
export const sectorEnd = (offset: number) => Math.ceil(offset / SECTOR) * SECTOR

export class EncryptedData {
  readonly #cipher: SectorCipher
  readonly #sector = new Uint8Array(SECTOR)
  #scratch: Uint8Array | undefined

  constructor(cipher: SectorCipher) {
    this.#cipher = cipher
  }

  /** Reads `length` bytes that are the guest's from `guest` on and lie at `host` into `buffer` from index `at` on. */
  read(storage: Storage, buffer: Uint8Array, at: number, length: number, guest: number, host: number): void {
    for (let done = 0; done < length; ) {
      const within = (guest + done) % SECTOR
      const whole = within === 0 ? sectorStart(length - done) : 0
      const n = whole > 0 ? whole : Math.min(SECTOR - within, length - done)
      if (whole > 0) this.#readSectors(storage, buffer, at + done, n, guest + done, host + done)
      else {
        this.#readSectors(storage, this.#sector, 0, SECTOR, guest + done - within, host + done - within)
        buffer.set(this.#sector.subarray(within, within + n), at + done)
      }
      done += n
    }
  }

  #readSectors(storage: Storage, buffer: Uint8Array, at: number, length: number, guest: number, host: number): void {
    const got = storage.read(buffer, at, length, host)
    if (got < length) buffer.fill(0, at + got, at + length)
    this.#cipher.decrypt(buffer, at, length, guest, host)
  }

  /**
   * Writes `length` bytes of `buffer` from index `at` on, or zeros where it is undefined. The rest of sectors that are
   * written in part stays; nobody else may write to these meanwhile.
   */
  write(
    storage: Storage,
    buffer: Uint8Array | undefined,
    at: number,
    length: number,
    guest: number,
    host: number,
  ): void {
    this.#scratch ??= new Uint8Array(CHUNK)
    for (let done = 0; done < length; ) {
      const within = (guest + done) % SECTOR
      const n = Math.min(length - done, CHUNK - within)
      const room = sectorEnd(within + n)
      const scratch = this.#scratch.subarray(0, room)
      const [sectorGuest, sectorHost] = [guest + done - within, host + done - within]
      const last = room - SECTOR
      if (within > 0) this.#readSectors(storage, scratch, 0, SECTOR, sectorGuest, sectorHost)
      if (within + n < room && (last > 0 || within === 0))
        this.#readSectors(storage, scratch, last, SECTOR, sectorGuest + last, sectorHost + last)
      if (buffer) scratch.set(buffer.subarray(at + done, at + done + n), within)
      else scratch.fill(0, within, within + n)
      this.#cipher.encrypt(scratch, 0, room, sectorGuest, sectorHost)
      storage.write(scratch, 0, room, sectorHost)
      done += n
    }
  }

  /** Encrypts whole sectors, in place, and writes them: for buffers that are nobody else's. */
  writeSectors(storage: Storage, buffer: Uint8Array, length: number, guest: number, host: number): void {
    this.#cipher.encrypt(buffer, 0, length, guest, host)
    storage.write(buffer, 0, length, host)
  }
}
