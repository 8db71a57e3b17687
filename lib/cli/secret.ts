/**
 * `--secret FILE`: the passphrase of an encrypted image, which is never taken from the command line or the environment,
 * where others could see it. Without the option it is asked for where there is a terminal.
 */

import { readFileSync } from 'node:fs'
import type { Secret } from '../image/open.js'
import { fromSystem, VdiskError } from '../util/errors.js'
import type { Io } from './io.js'

/** cryptsetup takes no more either. */
const MAX_SECRET = 8 << 20
const [CR, LF] = [13, 10]

/**
 * The passphrase in a file: all of it but one newline at its end, which editors and `echo` put there. (QEMU and cryptsetup
 * would take that as a part of it.)
 * @throws NOT_FOUND, ACCESS, USAGE
 */
export function readSecret(path: string): Uint8Array {
  let bytes: Uint8Array
  try {
    bytes = readFileSync(path)
  } catch (error) {
    throw fromSystem(error, path, 'read the secret in')
  }
  if (bytes.length > MAX_SECRET)
    throw new VdiskError('USAGE', `too large for a passphrase: ${bytes.length} bytes`, { path })
  const end = bytes.at(-1) !== LF ? bytes.length : bytes.at(-2) === CR ? bytes.length - 2 : bytes.length - 1
  if (end === 0) throw new VdiskError('USAGE', 'there is no passphrase in it', { path })
  return bytes.subarray(0, end)
}

export interface SecretRequest {
  /** The file that was given. */
  readonly file: string | undefined
  /** The image, as the user calls it. */
  readonly image: string
  /** It is to be chosen now: asked for twice. */
  readonly chosen?: boolean
}

/** Where the passphrase of an image comes from. A file is read at once, so that a mistake in its name is told first. */
export function secretOf({ file, image, chosen = false }: SecretRequest, io: Io): Secret | undefined {
  if (file !== undefined) return readSecret(file)
  const { askSecret } = io
  if (!askSecret) return undefined
  let asked: Uint8Array | undefined
  return () => {
    asked ??= ask(image, chosen, askSecret)
    return asked
  }
}

function ask(image: string, chosen: boolean, askSecret: NonNullable<Io['askSecret']>): Uint8Array | undefined {
  const first = askSecret(`Passphrase of ${image}: `)
  if (!first || !chosen) return first
  const second = askSecret('Once more: ')
  if (second && Buffer.compare(first, second) === 0) return first
  throw new VdiskError('USAGE', 'the two passphrases are not the same', { path: image })
}
