/** QCOW2. Source: QEMU's docs/interop/qcow2.rst. */

import type { Pages } from '../pages.js'
import { type Anatomy, Plan } from './anatomy.js'

const HEADER = `magic:4 version:4 backingOffset:8 backingLength:4 clusterBits:4 size:8 crypt:4 l1Size:4 l1Offset:8
  refcountOffset:8 refcountClusters:4 snapshots:4 snapshotsOffset:8`
const HEADER_3 = 'incompatible:8 compatible:8 autoclear:8 refcountOrder:4 headerLength:4 compression:1'
const EXTENSION = 'type:4 length:4'
const SNAPSHOT = 'l1Offset:8 l1Size:4 idLength:2 nameLength:2 seconds:4 nanoseconds:4 clock:8 stateSize:4 extraSize:4'
const BITMAPS = 'bitmaps:4 -reserved:4 directorySize:8 directoryOffset:8'
const DIRECTORY_ENTRY = 'tableOffset:8 tableSize:4 flags:4 type:1 granularity:1 nameLength:2 extraSize:4'
const OFFSET_MASK = 0x00fffffffffffe00n
const BITMAPS_EXTENSION = 0x23852875
const NAME = 'utf8'
const BACKING_FORMAT = 0xe2792aca
const CRYPTO_EXTENSION = 0x0537be77
const LUKS = `magic:6 version:2 cipher:8 -rest:24 mode:8 -rest:24 hash:8 -rest:24 payload:4 keyBytes:4 -digest:20 -salt:32
  -iterations:4 -uuid:40`
const KEY_SLOT = 'active:4 -iterations:4 -salt:32 material:4 stripes:4'
const KEY_SLOTS = 8

export function qcow2Anatomy(bytes: Pages): Anatomy {
  const plan = new Plan(bytes, true)
  plan.structure(0, HEADER)
  const cluster = 2 ** Math.min(21, plan.number(20, 4))
  let headerLength = 72
  if (plan.number(4, 4) >= 3) {
    plan.structure(72, HEADER_3)
    headerLength = plan.number(100, 4)
  }
  extensions(plan, headerLength, cluster)
  const backing = plan.number(8, 8)
  if (backing > 0)
    plan.texts.push({ at: backing, room: 1023, encoding: NAME, length: { name: 'length', at: 16, width: 4 } })
  l1Table(plan, plan.number(40, 8), plan.number(36, 4), cluster)
  refcounts(plan, cluster)
  snapshots(plan, cluster)
  return plan.done([1, 512, cluster])
}

function pointer(plan: Plan, at: number): number {
  return Number(BigInt(plan.number(at, 8)) & OFFSET_MASK)
}

function l1Table(plan: Plan, at: number, entries: number, cluster: number): void {
  plan.table('L1', at, Math.min(entries, 256), 8)
  let tables = 0
  for (let i = 0; i < Math.min(entries, 256) && tables < 2; i++) {
    const l2 = pointer(plan, at + 8 * i)
    if (l2 === 0 || l2 >= plan.bytes.size) continue
    plan.table('L2', l2, Math.min(cluster / 8, 512), 8)
    tables++
  }
}

function refcounts(plan: Plan, cluster: number): void {
  const table = plan.number(48, 8)
  plan.table('refcount table', table, Math.min(64, (plan.number(56, 4) * cluster) / 8), 8)
  const block = pointer(plan, table)
  if (block > 0) plan.table('refcounts', block, Math.min(256, cluster / 2), 2)
}

function extensions(plan: Plan, first: number, cluster: number): void {
  for (let at = first, i = 0; i < 8 && at + 8 < cluster; i++) {
    const type = plan.number(at, 4)
    const length = plan.number(at + 4, 4)
    const data = plan.structure(at, EXTENSION)
    if (type === 0 || length > 4096) return
    if (type === BITMAPS_EXTENSION) bitmaps(plan, data)
    else if (type === CRYPTO_EXTENSION) luks(plan, data)
    else if (length > 0 && length < 512)
      plan.texts.push({ at: data, room: length, encoding: NAME, word: type === BACKING_FORMAT })
    at = data + Math.ceil(length / 8) * 8
  }
}

function luks(plan: Plan, data: number): void {
  plan.structure(data, 'offset:8 length:8')
  let at = plan.structure(plan.number(data, 8), LUKS)
  for (let i = 0; i < KEY_SLOTS; i++) at = plan.structure(at, KEY_SLOT)
}

function bitmaps(plan: Plan, data: number): void {
  plan.structure(data, BITMAPS)
  let at = plan.number(data + 16, 8)
  for (let i = 0; i < Math.min(4, plan.number(data, 4)); i++) {
    const end = plan.structure(at, DIRECTORY_ENTRY)
    plan.table('bitmap table', pointer(plan, at), Math.min(16, plan.number(at + 8, 4)), 8)
    at = Math.ceil((end + plan.number(at + 18, 2) + plan.number(at + 20, 4)) / 8) * 8
  }
}

function snapshots(plan: Plan, cluster: number): void {
  let at = plan.number(64, 8)
  for (let i = 0; i < Math.min(4, plan.number(60, 4)); i++) {
    const end = plan.structure(at, SNAPSHOT)
    l1Table(plan, plan.number(at, 8), plan.number(at + 8, 4), cluster)
    const extra = plan.number(at + 36, 4)
    if (extra >= 16) plan.structure(end, 'stateSize:8 diskSize:8')
    at = Math.ceil((end + extra + plan.number(at + 12, 2) + plan.number(at + 14, 2)) / 8) * 8
  }
}
