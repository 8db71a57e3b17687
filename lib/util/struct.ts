/**
 * On-disk records, declared once: a table of names, types and byte order from which both reading and writing follow,
 * and whose size is asserted. 64-bit fields become safe integers here; no bigint leaves this file.
 */

import { VdiskError } from './errors.js'
import { formatGuid, GUID_BYTES, type GuidOrder, parseGuid } from './guid.js'

export type ByteOrder = 'big' | 'little'

/** Where a record lies, for the messages of errors. */
export interface Place {
  /** The file. */
  readonly path?: string | undefined
  /** Byte offset of the record in the file. */
  readonly offset?: number | undefined
}

/** What a field's type has to work with: a view of the whole buffer, and who is asking. */
interface Access {
  readonly view: DataView
  readonly little: boolean
  /** `RECORD: FIELD`, for messages. */
  readonly name: string
  readonly place: Place
}

/** The type of a field: how many bytes it takes and how a value of `T` is read and written. */
export interface FieldType<T> {
  readonly width: number
  read(access: Access, at: number): T
  write(access: Access, at: number, value: T): void
}

/** A field that is not read, and not changed by writing into a record that exists. */
export interface ReservedType extends FieldType<undefined> {
  readonly reserved: true
}

/** What the types of all values have in common. */
interface AnyField {
  readonly width: number
  read(access: Access, at: number): unknown
  write(access: Access, at: number, value: never): void
}

type Fields = Readonly<Record<string, AnyField>>

/** The values of a record: one property a field, reserved ones left out. */
export type ValuesOf<F> = {
  -readonly [K in keyof F as F[K] extends { readonly reserved: true } ? never : K]: F[K] extends {
    read(access: never, at: number): infer T
  }
    ? T
    : never
}

/** The values of a declared record: `type Footer = RecordOf<typeof FOOTER>`. */
export type RecordOf<S> = S extends Struct<infer F> ? ValuesOf<F> : never

function integer(
  width: number,
  get: 'getUint8' | 'getUint16' | 'getUint32',
  set: 'setUint8' | 'setUint16' | 'setUint32',
) {
  const limit = 2 ** (8 * width)
  const type: FieldType<number> = {
    width,
    read: ({ view, little }, at) => view[get](at, little),
    write({ view, little, name }, at, value) {
      if (!(Number.isInteger(value) && value >= 0 && value < limit))
        throw new VdiskError('INTERNAL', `${name}: ${value} does not fit into ${width} bytes`)
      view[set](at, value, little)
    },
  }
  return type
}

export const u8 = integer(1, 'getUint8', 'setUint8')
export const u16 = integer(2, 'getUint16', 'setUint16')
export const u32 = integer(4, 'getUint32', 'setUint32')

const ALL_ONES = 0xffff_ffff_ffff_ffffn

function tooLarge(name: string, value: bigint, { path, offset }: Place): VdiskError {
  const text = `${name} is 0x${value.toString(16)}: expected a number below 2^53`
  return new VdiskError('CORRUPT', text, { path, offset })
}

/** A 64-bit number. @throws CORRUPT, when read, where it is not below 2^53. */
export const u64: FieldType<number> = {
  width: 8,
  read({ view, little, name, place }, at) {
    const value = view.getBigUint64(at, little)
    if (value > Number.MAX_SAFE_INTEGER) throw tooLarge(name, value, place)
    return Number(value)
  },
  write({ view, little, name }, at, value) {
    if (!(Number.isSafeInteger(value) && value >= 0))
      throw new VdiskError('INTERNAL', `${name}: ${value} is not a whole number below 2^53`)
    view.setBigUint64(at, BigInt(value), little)
  },
}

/** As `u64`, and all bits set mean that there is none: `undefined`. */
export const u64OrNone: FieldType<number | undefined> = {
  width: 8,
  read: (access, at) => (access.view.getBigUint64(at, access.little) === ALL_ONES ? undefined : u64.read(access, at)),
  write(access, at, value) {
    if (value === undefined) access.view.setBigUint64(at, ALL_ONES, access.little)
    else u64.write(access, at, value)
  },
}

/** 64 flags, as the ascending numbers of those that are set: bit 0 is the lowest. */
export const bits64: FieldType<readonly number[]> = {
  width: 8,
  read({ view, little }, at) {
    const value = view.getBigUint64(at, little)
    return Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => ((value >> BigInt(bit)) & 1n) === 1n)
  },
  write({ view, little }, at, bits) {
    view.setBigUint64(
      at,
      bits.reduce((value, bit) => value | (1n << BigInt(bit)), 0n),
      little,
    )
  },
}

function bytesAt(view: DataView, at: number, length: number): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset + at, length)
}

/** Bytes as they are; reading copies them. */
export function bytes(width: number): FieldType<Uint8Array> {
  return {
    width,
    read: ({ view }, at) => new Uint8Array(bytesAt(view, at, width)),
    write({ view, name }, at, value) {
      if (value.length > width)
        throw new VdiskError('INTERNAL', `${name}: ${value.length} bytes do not fit into ${width}`)
      const target = bytesAt(view, at, width)
      target.fill(0)
      target.set(value)
    },
  }
}

/** Text of one-byte characters, of exactly `width` of them when read; when written, NULs fill it up. */
export function ascii(width: number): FieldType<string> {
  const type = bytes(width)
  return {
    width,
    read: (access, at) => String.fromCharCode(...type.read(access, at)),
    write: (access, at, value) =>
      type.write(
        access,
        at,
        Uint8Array.from(value, (c) => c.charCodeAt(0)),
      ),
  }
}

/** A GUID, as text. */
export function guid(order: GuidOrder): FieldType<string> {
  return {
    width: GUID_BYTES,
    read: ({ view }, at) => formatGuid(bytesAt(view, at, GUID_BYTES), order),
    write: ({ view }, at, value) => bytesAt(view, at, GUID_BYTES).set(parseGuid(value, order)),
  }
}

/** Bytes that mean nothing. */
export function reserved(width: number): ReservedType {
  return { width, reserved: true, read: () => undefined, write: () => {} }
}

/** `count` records of one kind in a row. */
export function array<F extends Fields>(count: number, element: Struct<F>): FieldType<ValuesOf<F>[]> {
  return {
    width: count * element.size,
    read: ({ view, place }, at) =>
      Array.from({ length: count }, (_, i) => element.readView(view, at + i * element.size, place)),
    write({ view, name }, at, values) {
      if (values.length !== count) throw new VdiskError('INTERNAL', `${name}: ${values.length} of ${count} elements`)
      values.forEach((value, i) => {
        element.writeView(view, at + i * element.size, value)
      })
    },
  }
}

export class Struct<F extends Fields> {
  /** As messages call it: `VHD footer`. */
  readonly name: string
  /** Bytes. */
  readonly size: number
  readonly #little: boolean
  readonly #fields: readonly (readonly [key: string, type: FieldType<unknown>, at: number])[]

  /**
   * @param size the record's size in the specification; asserted
   * @param fields in the order in which they lie in the record, with no gaps
   */
  constructor(name: string, size: number, order: ByteOrder, fields: F) {
    this.name = name
    this.size = size
    this.#little = order === 'little'
    let at = 0
    this.#fields = Object.entries(fields).map(([key, type]) => {
      const start = at
      at += type.width
      return [key, type as FieldType<unknown>, start] as const
    })
    if (at !== size) throw new VdiskError('INTERNAL', `${name}: the fields take ${at} bytes, not ${size}`)
  }

  /** Where a field begins, in bytes from the record's beginning. */
  offsetOf(field: keyof F): number {
    return this.#fields.find(([key]) => key === field)![2]
  }

  /**
   * The values of the record that begins at index `at`.
   * @throws CORRUPT where a 64-bit number is too large, or where the record does not end inside of `buffer`
   */
  read(buffer: Uint8Array, at = 0, place: Place = {}): ValuesOf<F> {
    if (at + this.size > buffer.length) {
      const text = `${this.name}: only ${Math.max(0, buffer.length - at)} of its ${this.size} bytes are there`
      throw new VdiskError('CORRUPT', text, place)
    }
    return this.readView(new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength), at, place)
  }

  readView(view: DataView, at: number, place: Place): ValuesOf<F> {
    const values: Record<string, unknown> = {}
    for (const [key, type, start] of this.#fields) {
      if ('reserved' in type) continue
      values[key] = type.read(this.#access(view, key, place), at + start)
    }
    return values as ValuesOf<F>
  }

  /** Writes the record at index `at`; reserved bytes stay as they are. */
  write(values: ValuesOf<F>, buffer: Uint8Array, at = 0): void {
    this.writeView(new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength), at, values)
  }

  writeView(view: DataView, at: number, values: ValuesOf<F>): void {
    for (const [key, type, start] of this.#fields)
      type.write(this.#access(view, key, {}), at + start, (values as Record<string, unknown>)[key])
  }

  /** The record's bytes, reserved ones zero. */
  encode(values: ValuesOf<F>): Uint8Array {
    const buffer = new Uint8Array(this.size)
    this.write(values, buffer)
    return buffer
  }

  #access(view: DataView, key: string, place: Place): Access {
    return { view, little: this.#little, name: `${this.name}: ${key}`, place }
  }
}
