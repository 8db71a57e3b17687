/** Where the parts of a new image lie, and its tables: refcounts, and with preallocation L1 and L2. */

import type { Storage } from '../../storage/storage.js'
import { ALL_SUBCLUSTERS, COPIED, highOf, lowOf, ZERO } from './entries.js'
import { Crypt, type Header, Incompatible } from './header.js'
import { ENTRY_BYTES, EXTENDED_ENTRY_BYTES } from './layout.js'

const CHUNK = 1 << 20

/** Where everything is: byte offsets, and counts of clusters. */
export interface Plan {
  readonly table: number
  readonly tableClusters: number
  readonly blocks: number
  readonly blockClusters: number
  readonly l1: number
  readonly l2: number
  readonly l2Clusters: number
  /** Of the LUKS header. */
  readonly crypt: number
  readonly data: number
  readonly end: number
  /** The data is in another file. */
  readonly external: boolean
}

interface Parts {
  /** With L2 tables and data. */
  readonly preallocated: boolean
  /** But the data is elsewhere. */
  readonly external: boolean
  /** Bytes of the LUKS header. */
  readonly cryptLength: number
}

export function planImage(header: Header, { preallocated, external, cryptLength }: Parts): Plan {
  const { clusterBits, refcountOrder, l1Size, size } = header
  const clusterSize = 2 ** clusterBits
  const blockEntries = (clusterSize * 8) / 2 ** refcountOrder
  const l1Clusters = Math.ceil((l1Size * ENTRY_BYTES) / clusterSize)
  const l2Clusters = preallocated ? l1Size : 0
  const dataClusters = preallocated && !external ? Math.ceil(size / clusterSize) : 0
  const cryptClusters = Math.ceil(cryptLength / clusterSize)
  const others = 1 + l1Clusters + l2Clusters + cryptClusters + dataClusters
  let blockClusters = 1
  let tableClusters = 1
  for (let total = 0; ; ) {
    const now = others + blockClusters + tableClusters
    if (now === total) break
    total = now
    blockClusters = Math.ceil(total / blockEntries)
    tableClusters = Math.ceil((blockClusters * ENTRY_BYTES) / clusterSize)
  }
  const table = clusterSize
  const blocks = table + tableClusters * clusterSize
  const l1 = blocks + blockClusters * clusterSize
  const l2 = l1 + l1Clusters * clusterSize
  const crypt = l2 + l2Clusters * clusterSize
  const data = crypt + cryptClusters * clusterSize
  const end = data + dataClusters * clusterSize
  return { table, tableClusters, blocks, blockClusters, l1, l2, l2Clusters, crypt, data, end, external }
}

/** Every cluster has the refcount 1. The file is zeros. */
export function writeRefcounts(storage: Storage, { clusterBits, refcountOrder }: Header, plan: Plan): void {
  const clusterSize = 2 ** clusterBits
  const table = new DataView(new ArrayBuffer(plan.blockClusters * ENTRY_BYTES))
  for (let i = 0; i < plan.blockClusters; i++) {
    const offset = plan.blocks + i * clusterSize
    table.setUint32(i * ENTRY_BYTES, highOf(offset))
    table.setUint32(i * ENTRY_BYTES + 4, lowOf(offset))
  }
  storage.write(new Uint8Array(table.buffer), 0, table.byteLength, plan.table)
  const clusters = plan.end / clusterSize
  const perChunk = (CHUNK * 8) / 2 ** refcountOrder
  for (let first = 0; first < clusters; first += perChunk) {
    const ones = onesOf(refcountOrder, Math.min(perChunk, clusters - first))
    storage.write(ones, 0, ones.length, plan.blocks + (first / perChunk) * CHUNK)
  }
}

/** So many refcounts of 1. */
function onesOf(order: number, count: number): Uint8Array {
  const bits = 2 ** order
  const out = new Uint8Array(Math.ceil((count * bits) / 8))
  for (let i = 0; i < count; i++) {
    if (bits < 8) out[Math.floor((i * bits) / 8)]! |= 1 << ((i * bits) % 8)
    else out[((i + 1) * bits) / 8 - 1] = 1
  }
  return out
}

/** L1 and L2 tables of which every entry says a place. */
export function writeTables(storage: Storage, header: Header, plan: Plan, backing: boolean): void {
  const clusterSize = 2 ** header.clusterBits
  const extended = header.incompatible.includes(Incompatible.EXTENDED_L2)
  const entryBytes = extended ? EXTENDED_ENTRY_BYTES : ENTRY_BYTES
  const encrypted = header.cryptMethod !== Crypt.NONE
  const entries = clusterSize / entryBytes
  const clusters = Math.ceil(header.size / clusterSize)
  const l1 = new DataView(new ArrayBuffer(plan.l2Clusters * ENTRY_BYTES))
  const base = plan.external ? 0 : plan.data
  for (let t = 0; t < plan.l2Clusters; t++) {
    const offset = plan.l2 + t * clusterSize
    l1.setUint32(t * ENTRY_BYTES, (COPIED | highOf(offset)) >>> 0)
    l1.setUint32(t * ENTRY_BYTES + 4, lowOf(offset))
    const l2 = new DataView(new ArrayBuffer(clusterSize))
    for (let i = 0; i < entries && t * entries + i < clusters; i++) {
      const host = base + (t * entries + i) * clusterSize
      l2.setUint32(i * entryBytes, (COPIED | highOf(host)) >>> 0)
      // Zeros in the file are zeros on the disk only where they are not decrypted: with encryption they are said to be.
      l2.setUint32(i * entryBytes + 4, lowOf(host) | (encrypted && !extended ? ZERO : 0))
      // Over a backing file the room is there, and nothing in it.
      if (extended) l2.setUint32(i * entryBytes + (encrypted ? 8 : 12), backing ? 0 : ALL_SUBCLUSTERS)
    }
    storage.write(new Uint8Array(l2.buffer), 0, clusterSize, offset)
  }
  storage.write(new Uint8Array(l1.buffer), 0, l1.byteLength, plan.l1)
}

export function preallocate(storage: Storage, offset: number, length: number, preallocation: string): void {
  if (preallocation === 'falloc') storage.reserve(offset, length)
  if (preallocation !== 'full') return
  const zeros = new Uint8Array(CHUNK)
  for (let done = 0; done < length; done += CHUNK)
    storage.write(zeros, 0, Math.min(CHUNK, length - done), offset + done)
}
