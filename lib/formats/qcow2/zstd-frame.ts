/**
 * Where a zstd frame ends (RFC 8878, 3.1): a QCOW2 image knows the length of a compressed cluster to a sector only, and
 * what follows in the last one, often the next cluster's frame, must not reach a decompressor that takes all it gets.
 */

const FRAME_MAGIC = 0xfd2fb528
/** 16 magic numbers, whose frames hold nothing for us. */
const SKIPPABLE_MAGIC = 0x184d2a5
const CHECKSUM_SIZE = 4
const BLOCK_HEADER_SIZE = 3
const RLE_BLOCK = 1
const RESERVED_BLOCK = 3
const DICTIONARY_ID_SIZES = [0, 1, 2, 4]
const CONTENT_SIZE_SIZES = [0, 2, 4, 8]

export interface Frame {
  /** Bytes, from its magic number to its end. */
  readonly length: number
  /** It holds no data. */
  readonly skippable: boolean
}

/**
 * The frame that begins at index `at`.
 * @throws Error where none does, or it does not end inside of `data`
 */
export function frameAt(data: Uint8Array, at: number): Frame {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength)
  try {
    const magic = view.getUint32(at, true)
    const skippable = magic >>> 4 === SKIPPABLE_MAGIC
    if (!skippable && magic !== FRAME_MAGIC) throw new Error(`0x${magic.toString(16)} is no zstd frame`)
    const length = skippable ? 8 + view.getUint32(at + 4, true) : endOfBlocks(view, at) - at
    if (at + length > data.length) throw new RangeError()
    return { length, skippable }
  } catch (error) {
    if (error instanceof RangeError) throw new Error('the zstd frame is cut off')
    throw error
  }
}

/** The end of the frame, behind its blocks and its checksum. */
function endOfBlocks(view: DataView, frame: number): number {
  const descriptor = view.getUint8(frame + 4)
  const single = (descriptor & 0x20) !== 0
  const contentSizeFlag = descriptor >> 6
  const contentSize = contentSizeFlag === 0 && single ? 1 : CONTENT_SIZE_SIZES[contentSizeFlag]!
  let at = frame + 5 + (single ? 0 : 1) + DICTIONARY_ID_SIZES[descriptor & 3]! + contentSize
  for (let last = false; !last; ) {
    const header = view.getUint16(at, true) | (view.getUint8(at + 2) << 16)
    last = (header & 1) !== 0
    const type = (header >> 1) & 3
    if (type === RESERVED_BLOCK) throw new Error('a zstd block has the reserved type')
    at += BLOCK_HEADER_SIZE + (type === RLE_BLOCK ? 1 : header >> 3)
  }
  return at + ((descriptor & 4) !== 0 ? CHECKSUM_SIZE : 0)
}
