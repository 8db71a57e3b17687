/** Parts of host files, in order: how a range of a disk is handed on without reading it. */

/** One object is filled and used again and again. */
export class Pieces {
  /** A request is nearly always made of one or two; with many more, copying is no slower. */
  static readonly MOST = 16
  count = 0
  readonly descriptors = new Int32Array(Pieces.MOST)
  readonly offsets = new Float64Array(Pieces.MOST)
  readonly lengths = new Float64Array(Pieces.MOST)

  /** @param offset and length: bytes of the open file `descriptor` */
  add(descriptor: number, offset: number, length: number): void {
    this.descriptors[this.count] = descriptor
    this.offsets[this.count] = offset
    this.lengths[this.count++] = length
  }
}
