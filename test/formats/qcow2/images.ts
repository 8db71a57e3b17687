/** QCOW2 images that QEMU makes, lives of images against a plain buffer, and QEMU's judgement of them. */

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Image } from '../../../lib/image/image.js'
import { type OpenOptions, openImage } from '../../../lib/image/open.js'
import { randomBytes } from '../../model/variants.js'
import { must } from '../../support/run.js'

export const KiB = 1024
export const MiB = 1024 * KiB

/** Makes an image with qemu-img. @returns its path */
export function qemuCreate(folder: string, name: string, size: number, options = '', more: readonly string[] = []) {
  const path = join(folder, name)
  must('qemu-img', ['create', '-q', '-f', 'qcow2', ...(options ? ['-o', options] : []), ...more, path, String(size)])
  return path
}

/** Has qemu-io do something to an image: `write -P 3 64k 4k`. */
export function qemuIo(path: string, ...commands: readonly string[]): void {
  must('qemu-io', ['-f', 'qcow2', '-d', 'unmap', ...commands.flatMap((command) => ['-c', command]), path])
}

/** What QEMU reads. */
export function asQemuReads(path: string, snapshot?: string): Buffer {
  const raw = `${path}.as-qemu-reads`
  must('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', ...(snapshot ? ['-l', snapshot] : []), path, raw])
  return readFileSync(raw)
}

/** Refcounts, flags and tables are in order, and nothing is leaked. */
export function qemuCheck(path: string): void {
  must('qemu-img', ['check', '-q', '-f', 'qcow2', path])
}

export function readAll(path: string, options: OpenOptions = {}): Buffer {
  const image = openImage(path, { readOnly: true, format: 'qcow2', ...options })
  try {
    const bytes = Buffer.alloc(image.size, 0xee)
    image.read(bytes, 0, image.size, 0)
    return bytes
  } finally {
    image.close()
  }
}

/** One random write, zero, discard or flush, done to the model as well. */
export function change(image: Image, model: Uint8Array, random: () => number): void {
  const { size } = image
  const dice = random()
  const length = Math.min(size, Math.ceil(random() * (dice < 0.5 ? 700 : dice < 0.9 ? 40_000 : size / 4)))
  let offset = Math.floor(random() * (size - length + 1))
  if (random() < 0.5) offset -= offset % 4096
  const kind = random()
  if (kind < 0.65) {
    const data = randomBytes(length, random)
    image.write(data, 0, length, offset)
    model.set(data, offset)
  } else if (kind < 0.95) {
    image.zero(offset, length, kind < 0.8)
    model.fill(0, offset, offset + length)
  } else image.flush()
}

/** Changes an image at random and closes it. */
export function scribble(path: string, model: Uint8Array, steps: number, random: () => number, options?: OpenOptions) {
  const image = openImage(path, { format: 'qcow2', ...options })
  for (let i = 0; i < steps; i++) change(image, model, random)
  image.close()
}

/** Changes bytes of a file. */
export function patch(path: string, offset: number, bytes: readonly number[] | Uint8Array): void {
  const file = readFileSync(path)
  file.set(bytes, offset)
  writeFileSync(path, file)
}
