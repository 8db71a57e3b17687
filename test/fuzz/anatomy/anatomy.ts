/** Where in an image its fields and tables are: what a mutator aims at. Written down from the specifications. */

import type { Pages } from '../pages.js'

export interface Field {
  readonly name: string
  /** Byte offset in the file. */
  readonly at: number
  /** Bytes: 1, 2, 4 or 8. */
  readonly width: number
}

/** A row of numbers of one kind. */
export interface Table {
  readonly name: string
  readonly at: number
  readonly count: number
  readonly width: number
}

/** A text that names something. */
export interface Text {
  readonly at: number
  /** Bytes that it may take up. */
  readonly room: number
  readonly encoding: 'utf8' | 'utf16le' | 'utf16be'
  /** It names no file. */
  readonly word?: boolean
  /** Where its length in bytes is written, if it is. */
  readonly length?: Field
}

export interface Anatomy {
  readonly bigEndian: boolean
  readonly fields: readonly Field[]
  readonly tables: readonly Table[]
  readonly texts: readonly Text[]
  /** In which offsets and sizes are counted, in bytes. */
  readonly units: readonly number[]
  /** Makes checksums right again, the innermost first. */
  readonly seals: readonly ((bytes: Pages) => void)[]
}

/** An anatomy in the making. */
export class Plan {
  readonly fields: Field[] = []
  readonly tables: Table[] = []
  readonly texts: Text[] = []
  readonly seals: ((bytes: Pages) => void)[] = []
  readonly bytes: Pages
  readonly bigEndian: boolean

  constructor(bytes: Pages, bigEndian: boolean) {
    this.bytes = bytes
    this.bigEndian = bigEndian
  }

  /**
   * Adds the fields of a structure, one behind the other.
   * @param words `name:width`; a name that begins with `-` is skipped
   * @returns the offset behind them
   */
  structure(at: number, words: string): number {
    let next = at
    for (const word of words.split(/\s+/)) {
      const [name, width] = word.split(':') as [string, string]
      const bytes = Number(width)
      if (!name.startsWith('-'))
        for (let i = 0; i < bytes; i += 8) this.fields.push({ name, at: next + i, width: Math.min(8, bytes - i) })
      next += bytes
    }
    return next
  }

  table(name: string, at: number, count: number, width: number): void {
    const room = Math.floor((this.bytes.size - at) / width)
    if (at >= 0 && room > 0 && count > 0) this.tables.push({ name, at, count: Math.min(count, room), width })
  }

  number(at: number, width: number): number {
    return Number(readNumber(this.bytes, at, width, this.bigEndian))
  }

  text(at: number, length: number, encoding: BufferEncoding = 'latin1'): string {
    return Buffer.from(this.bytes.get(at, length)).toString(encoding)
  }

  done(units: readonly number[]): Anatomy {
    const { bigEndian, fields, tables, texts, seals } = this
    return { bigEndian, fields: fields.filter((f) => f.at + f.width <= this.bytes.size), tables, texts, units, seals }
  }
}

export function readNumber(bytes: Pages, at: number, width: number, bigEndian: boolean): bigint {
  const raw = bytes.get(at, width)
  if (!bigEndian) raw.reverse()
  let value = 0n
  for (const byte of raw) value = (value << 8n) | BigInt(byte)
  return value
}

export function writeNumber(bytes: Pages, at: number, width: number, bigEndian: boolean, value: bigint): void {
  const raw = new Uint8Array(width)
  let rest = value
  for (let i = 0; i < width; i++) {
    raw[bigEndian ? width - 1 - i : i] = Number(rest & 0xffn)
    rest >>= 8n
  }
  bytes.put(at, raw)
}
