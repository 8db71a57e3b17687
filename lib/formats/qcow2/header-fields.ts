/** Fields of the header that are changed together, each group with one write into the first sector. */

import type { Storage } from '../../storage/storage.js'
import { FIELD, type Header } from './header.js'

type SnapshotFields = Pick<Header, 'nbSnapshots' | 'snapshotsOffset'>

/** Number and place of the snapshots, as they lie from `FIELD.nbSnapshots` on. */
export function snapshotFields({ nbSnapshots, snapshotsOffset }: SnapshotFields): Uint8Array {
  const bytes = Buffer.alloc(12)
  bytes.writeUInt32BE(nbSnapshots, 0)
  bytes.writeBigUInt64BE(BigInt(snapshotsOffset), 4)
  return bytes
}

export function writeSnapshotFields(storage: Storage, values: SnapshotFields): void {
  const bytes = snapshotFields(values)
  storage.write(bytes, 0, bytes.length, FIELD.nbSnapshots)
}

/** Size of the disk, and size and place of the active L1 table, with the encryption method between them. */
export function writeDiskFields(storage: Storage, { size, cryptMethod, l1Size, l1TableOffset }: Header): void {
  const bytes = Buffer.alloc(24)
  bytes.writeBigUInt64BE(BigInt(size), 0)
  bytes.writeUInt32BE(cryptMethod, 8)
  bytes.writeUInt32BE(l1Size, 12)
  bytes.writeBigUInt64BE(BigInt(l1TableOffset), 16)
  storage.write(bytes, 0, bytes.length, FIELD.size)
}
