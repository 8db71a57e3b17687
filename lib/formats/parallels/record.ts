/**
 * Little-endian records, declared once as a table of names and widths, for reading and for writing. 64-bit numbers are
 * split into their halves by whoever needs all of them: what is beyond 2^53 is the caller's to refuse.
 */

/** `u32` and `u64` are numbers, `text` is ASCII, `bytes` are copied. */
export type FieldType = 'u32' | 'u64' | 'text' | 'bytes'
export type FieldTable = Readonly<Record<string, readonly [type: FieldType, length: number]>>

type FieldValue<T extends FieldType> = T extends 'text' ? string : T extends 'bytes' ? Uint8Array : number
export type RecordOf<T extends FieldTable> = { -readonly [K in keyof T]: FieldValue<T[K][0]> }

export interface RecordCodec<T extends FieldTable> {
  /** Bytes. */
  readonly size: number
  /** Byte offset of each field in the record. */
  readonly at: Readonly<Record<keyof T, number>>
  decode(bytes: Uint8Array, offset?: number): RecordOf<T>
  encode(values: RecordOf<T>, bytes: Uint8Array, offset?: number): void
}

/** Numbers of 64 bits that JavaScript cannot hold become this, which is beyond every limit. */
export const TOO_LARGE = Number.POSITIVE_INFINITY

export function readU64(view: DataView, at: number): number {
  const value = view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true)
  return Number.isSafeInteger(value) ? value : TOO_LARGE
}

export function writeU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % 2 ** 32, true)
  view.setUint32(at + 4, Math.floor(value / 2 ** 32), true)
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** @param size what the table must add up to, as the specification says */
export function recordCodec<T extends FieldTable>(fields: T, size: number): RecordCodec<T> {
  const at: Record<string, number> = {}
  let end = 0
  for (const [name, [, length]] of Object.entries(fields)) {
    at[name] = end
    end += length
  }
  if (end !== size) throw new RangeError(`a record of ${end} bytes, expected ${size}`)
  return {
    size,
    at: at as Record<keyof T, number>,
    decode(bytes, offset = 0) {
      const view = viewOf(bytes)
      const values: Record<string, unknown> = {}
      for (const [name, [type, length]] of Object.entries(fields))
        values[name] = readField(view, bytes, offset + at[name]!, type, length)
      return values as RecordOf<T>
    },
    encode(values, bytes, offset = 0) {
      const view = viewOf(bytes)
      for (const [name, [type, length]] of Object.entries(fields))
        writeField(view, bytes, offset + at[name]!, type, length, values[name])
    },
  }
}

function readField(view: DataView, bytes: Uint8Array, at: number, type: FieldType, length: number): unknown {
  if (type === 'u32') return view.getUint32(at, true)
  if (type === 'u64') return readU64(view, at)
  const part = bytes.slice(at, at + length)
  return type === 'text' ? String.fromCharCode(...part) : part
}

function writeField(
  view: DataView,
  bytes: Uint8Array,
  at: number,
  type: FieldType,
  length: number,
  value: unknown,
): void {
  if (type === 'u32') view.setUint32(at, value as number, true)
  else if (type === 'u64') writeU64(view, at, value as number)
  else if (type === 'bytes') bytes.set((value as Uint8Array).subarray(0, length), at)
  else for (let i = 0; i < length; i++) bytes[at + i] = (value as string).charCodeAt(i)
}
