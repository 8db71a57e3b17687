/** What the tests of QCOW2's tools share: images of QEMU, their bytes by the specification, and its opinion of ours. */

import { readFileSync, writeFileSync } from 'node:fs'
import type { OpenContext } from '../../../lib/formats/driver.js'
import { qcow2 } from '../../../lib/formats/qcow2/format.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import type { Storage } from '../../../lib/storage/storage.js'
import { must, run } from '../../support/run.js'

export const KiB = 1024
export const MiB = 2 ** 20
export const GiB = 2 ** 30

export function create(path: string, size: string, options = '', ...more: string[]): void {
  must('qemu-img', ['create', '-q', '-f', 'qcow2', ...(options ? ['-o', options] : []), ...more, path, size])
}

/** Has QEMU write: `write -P 1 0 64k`. */
export function io(path: string, ...commands: string[]): void {
  must('qemu-io', ['-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), path])
}

/** What QEMU does not find as it should be: `read -P 1 0 64k`. */
export function differences(path: string, ...commands: string[]): string[] {
  const { out, err } = run('qemu-io', ['-r', '-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), path])
  return `${out}${err}`.split('\n').filter((line) => /fail|error|cannot/i.test(line))
}

export interface QemuCheck {
  readonly code: number
  readonly 'image-end-offset'?: number
  readonly 'total-clusters'?: number
  readonly 'allocated-clusters'?: number
  readonly 'fragmented-clusters'?: number
  readonly 'compressed-clusters'?: number
  readonly corruptions?: number
  readonly leaks?: number
}

/** `qemu-img check`: its exit code and what it counted. */
export function qemuCheck(path: string): QemuCheck {
  const { code, out } = run('qemu-img', ['check', '-f', 'qcow2', '--output=json', path])
  return { code, ...(code === 1 ? {} : JSON.parse(out)) }
}

export function qemuInfo(path: string) {
  return JSON.parse(must('qemu-img', ['info', '-f', 'qcow2', '--output=json', path]))
}

/** An image's bytes, to be changed by hand. The fields are the specification's. */
export class Bytes {
  readonly #path: string
  readonly bytes: Buffer

  constructor(path: string) {
    this.#path = path
    this.bytes = readFileSync(path)
  }

  save(): void {
    writeFileSync(this.#path, this.bytes)
  }

  u64(at: number): number {
    return Number(this.bytes.readBigUInt64BE(at) & 0x00ffffffffffffffn)
  }

  set64(at: number, value: number | bigint): this {
    this.bytes.writeBigUInt64BE(BigInt(value), at)
    return this
  }

  set32(at: number, value: number): this {
    this.bytes.writeUInt32BE(value, at)
    return this
  }

  set16(at: number, value: number): this {
    this.bytes.writeUInt16BE(value, at)
    return this
  }

  get cluster(): number {
    return 2 ** this.bytes.readUInt32BE(20)
  }

  get l1(): number {
    return this.u64(40)
  }

  /** Where the first L2 table is. */
  get l2(): number {
    return this.u64(this.l1)
  }

  get refcountTable(): number {
    return this.u64(48)
  }

  get refcountTableClusters(): number {
    return this.bytes.readUInt32BE(56)
  }

  /** Where the first refcount block is. */
  get refcounts(): number {
    return this.u64(this.refcountTable)
  }

  /** Where the 16-bit refcount of the cluster at a byte offset is. */
  refcountOf(offset: number): number {
    return this.refcounts + (offset / this.cluster) * 2
  }

  get snapshots(): number {
    return this.u64(64)
  }
}

/** Changes an image's bytes by hand. */
export function change(path: string, how: (bytes: Bytes) => void): void {
  const bytes = new Bytes(path)
  how(bytes)
  bytes.save()
}

export function inMemory(path: string): MemoryStorage {
  return MemoryStorage.create({ path: 'image.qcow2', contents: readFileSync(path), maxSize: GiB })
}

export function toFile(storage: Storage, path: string): void {
  const bytes = Buffer.alloc(storage.size())
  storage.read(bytes, 0, bytes.length, 0)
  writeFileSync(path, bytes)
}

export function contextOf(
  storage: Storage,
  readOnly: boolean,
  warn: (message: string) => void = () => {},
): OpenContext {
  return { storage, path: `/${storage.path}`, readOnly, warn }
}

/** As the engine opens it before a tool is used on it. */
export function layoutOf(storage: Storage) {
  return qcow2.open(contextOf(storage, false)).layout
}
