/** Encrypted images for the tests: made by QEMU, made here, and QEMU's view of both. */

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createImage } from '../../../lib/image/create.js'
import { must, run } from '../../support/run.js'

export const MiB = 2 ** 20
export const PASSPHRASE = 'geheim'
export const secret = Buffer.from(PASSPHRASE)

const OBJECT = ['--object', `secret,id=s,data=${PASSPHRASE}`]

/** The image as QEMU's programs are told of it. */
export const qemuOptions = (image: string) => [
  ...OBJECT,
  '--image-opts',
  `driver=qcow2,encrypt.key-secret=s,file.filename=${image}`,
]

/**
 * QEMU measures how fast the machine derives keys, by a clock that only the kernel's ticks move (4 ms and more). Versions of
 * it give up, with "Unable to get accurate CPU usage", where the first rounds end within a tick, as they do with a
 * processor's instructions for SHA. So its library is told not to use these.
 */
const SLOW_HASHES = { NETTLE_FAT_OVERRIDE: 'vendor:intel', GNUTLS_CPUID_OVERRIDE: '0x1' }

/** An image that QEMU made. What it measures can be uneven even so: it is asked several times. */
export function qemuCreate(image: string, size: string, options: readonly string[]): void {
  let last = ''
  for (const time of [10, 50, 100, 500, 1000, 2000, 2000]) {
    const all = [
      ...options,
      'encrypt.key-secret=s',
      ...(options[0] === 'encrypt.format=luks' ? [`encrypt.iter-time=${time}`] : []),
    ]
    const { code, err } = run(
      'qemu-img',
      ['create', '-q', ...OBJECT, '-f', 'qcow2', '-o', all.join(','), image, size],
      {
        env: SLOW_HASHES,
      },
    )
    if (code === 0) return
    last = err
  }
  throw new Error(`qemu-img create: ${last}`)
}

/** An image of ours. */
export function create(image: string, size: number, options: readonly string[]): void {
  createImage(image, { format: 'qcow2', size, secret, options: [...options, 'encrypt.iter-time=1'] })
}

/** Runs commands of qemu-io on an encrypted image. Throws where one fails, or a pattern is not what is there. */
export function qemuIo(image: string, ...commands: string[]): void {
  const out = must('qemu-io', [...qemuOptions(image), ...commands.flatMap((command) => ['-c', command])])
  if (/fail|error/i.test(out)) throw new Error(`qemu-io ${commands.join('; ')}: ${out}`)
}

/** A file with the passphrase. */
export function secretFile(folder: string, content = PASSPHRASE): string {
  const path = join(folder, `secret-${content.length}`)
  writeFileSync(path, content)
  return path
}
