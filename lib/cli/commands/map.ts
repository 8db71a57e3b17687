/** `vdiskfs map IMAGE`. */

import { type MapEntry, runs } from '../../image/map.js'
import { openImage } from '../../image/open.js'
import { parseSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { wantsJson } from '../output.js'
import { secretOf } from '../secret.js'

/** Lines are given out in pieces of about this length: a map can have millions. */
const PIECE = 1 << 16

export function run(args: Arguments, io: Io): number {
  const lines = wantsJson(args) ? jsonLines : textLines
  const path = args.positionals[0]!
  const image = openImage(path, {
    readOnly: true,
    secret: secretOf({ file: args.value('secret'), image: path }, io),
    lock: false,
    format: args.value('format'),
    backingDirs: args.values('backing-dir'),
    warn: (text) => io.err(`vdiskfs: ${text}\n`),
  })
  try {
    const start = Math.min(size(args, 'start-offset', 0), image.size)
    const end = Math.min(image.size, start + size(args, 'max-length', image.size))
    let piece = ''
    for (const line of lines(runs(image, start, end))) {
      piece += line
      if (piece.length < PIECE) continue
      io.out(piece)
      piece = ''
    }
    io.out(piece)
  } finally {
    image.close()
  }
  return 0
}

function size(args: Arguments, name: string, otherwise: number): number {
  const text = args.value(name)
  return text === undefined ? otherwise : parseSize(text)
}

/** An array, one run a line, with the keys of `qemu-img map --output=json`. */
function* jsonLines(entries: Iterable<MapEntry>): Generator<string> {
  let before = '['
  for (const { start, length, depth, present, zero, data, compressed, offset } of entries) {
    const optional = { ...(compressed ? { compressed } : {}), ...(offset === undefined ? {} : { offset }) }
    yield before + JSON.stringify({ start, length, depth, present, zero, data, ...optional })
    before = ',\n'
  }
  yield before === '[' ? '[]\n' : ']\n'
}

const COLUMN = 16

/** A table of what takes up space, as `qemu-img map`. */
function* textLines(entries: Iterable<MapEntry>): Generator<string> {
  const row = (a: string, b: string, c: string, file: string) =>
    `${a.padEnd(COLUMN)}${b.padEnd(COLUMN)}${c.padEnd(COLUMN)}${file}\n`
  const hex = (value: number) => `0x${value.toString(16)}`
  yield row('Offset', 'Length', 'Mapped to', 'File')
  for (const { start, length, data, compressed, offset, file } of entries) {
    if (!data) continue
    const where = compressed ? 'compressed' : offset === undefined ? 'encrypted' : hex(offset)
    yield row(hex(start), hex(length), where, file ?? '')
  }
}
