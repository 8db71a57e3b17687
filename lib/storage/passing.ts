/** A storage that passes everything on to another one, for those that do something about a few of its operations. */

import type { Storage, StorageHandle } from './storage.js'

export class PassingStorage<Inner extends Storage = Storage> implements Storage {
  readonly path: string
  readonly readOnly: boolean
  protected readonly inner: Inner

  constructor(inner: Inner) {
    this.path = inner.path
    this.readOnly = inner.readOnly
    this.inner = inner
  }

  get fixedSize(): boolean {
    return this.inner.fixedSize ?? false
  }

  read(buffer: Uint8Array, at: number, length: number, offset: number): number {
    return this.inner.read(buffer, at, length, offset)
  }

  write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.inner.write(buffer, at, length, offset)
  }

  size(): number {
    return this.inner.size()
  }

  allocated(): number {
    return this.inner.allocated()
  }

  truncate(size: number): void {
    this.inner.truncate(size)
  }

  sync(): void {
    this.inner.sync()
  }

  punch(offset: number, length: number): void {
    this.inner.punch(offset, length)
  }

  zero(offset: number, length: number): void {
    this.inner.zero(offset, length)
  }

  reserve(offset: number, length: number): void {
    this.inner.reserve(offset, length)
  }

  nextData(offset: number): number {
    return this.inner.nextData(offset)
  }

  nextHole(offset: number): number {
    return this.inner.nextHole(offset)
  }

  handle(): StorageHandle {
    return this.inner.handle()
  }

  close(): void {
    this.inner.close()
  }
}
