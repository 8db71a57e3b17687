/** A partition, and how the readers of both kinds of tables collect them. */

/** What holds the table: an Image is one. Bytes. */
export interface Disk {
  readonly size: number
  read(buffer: Uint8Array, at: number, length: number, offset: number): void
}

/** A partition. Plain data. */
export interface Partition {
  /** As Linux counts: a GPT's entry, an MBR's entry from 1 to 4, logical partitions from 5 on. */
  readonly number: number
  /** Bytes from the beginning of the disk. */
  readonly start: number
  /** Bytes; the partition lies in the disk. */
  readonly size: number
  /** As sfdisk(8) writes it: `83` (hexadecimal), or a GUID in upper case. */
  readonly type: string
  /** Of a GPT. */
  readonly name?: string
  readonly uuid?: string
}

/** What the readers of both kinds have to work with. */
export interface Findings {
  readonly disk: Disk
  readonly partitions: Partition[]
  warn(text: string): void
}

/** Adds a partition as far as it lies in the disk. */
export function addPartition({ disk, partitions, warn }: Findings, partition: Partition): void {
  const { number, start, size } = partition
  if (start >= disk.size) {
    warn(`partition ${number} begins at byte ${start}, behind the end of the disk (${disk.size} bytes): left out`)
    return
  }
  const room = disk.size - start
  if (size > room) warn(`partition ${number} ends ${size - room} bytes behind the end of the disk: cut off there`)
  partitions.push({ ...partition, size: Math.min(size, room) })
}
