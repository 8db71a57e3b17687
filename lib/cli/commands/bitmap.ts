/** `vdiskfs bitmap list|extents|add|clear|remove IMAGE [NAME]`. */

import type { BitmapFacts, ByteRange } from '../../formats/driver.js'
import { addBitmap, clearBitmap, eachBitmapExtent, listBitmaps, removeBitmap } from '../../image/bitmaps.js'
import { VdiskError } from '../../util/errors.js'
import { formatSize, parseSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { columns, json, wantsJson } from '../output.js'

interface Request {
  readonly path: string
  readonly name: string | undefined
  readonly args: Arguments
  readonly io: Io
  readonly options: {
    readonly format: string | undefined
    readonly backingDirs: readonly string[]
    readonly warn: (text: string) => void
  }
}

const ACTIONS: Readonly<Record<string, (request: Request) => void>> = { list, extents, add, clear, remove }

export function run(args: Arguments, io: Io): number {
  const [action, path, name] = args.positionals as [string, string, string | undefined]
  const act = ACTIONS[action]
  if (!act) throw new VdiskError('USAGE', `bitmap ${action}: expected ${Object.keys(ACTIONS).join(', ')}`)
  if (action === 'list' && name !== undefined) throw new VdiskError('USAGE', `bitmap list: '${name}' is one too many`)
  if (action !== 'add' && args.has('granularity')) throw new VdiskError('USAGE', `bitmap ${action}: only add has -g`)
  const warn = (text: string) => io.err(`vdiskfs: ${text}\n`)
  act({
    path,
    name,
    args,
    io,
    options: { format: args.value('format'), backingDirs: args.values('backing-dir'), warn },
  })
  return 0
}

/** The bitmap that is meant. @throws USAGE where none is named */
function nameOf({ name, args }: Request): string {
  if (name === undefined) throw new VdiskError('USAGE', `bitmap ${args.positionals[0]}: which bitmap? NAME is missing`)
  return name
}

function list({ path, args, io, options }: Request): void {
  const found = listBitmaps(path, options)
  if (wantsJson(args)) io.out(json(found))
  else if (found.length > 0) io.out(columns([['NAME', 'GRANULARITY', 'FLAGS'], ...found.map(row)]))
}

function row({ name, granularity, flags }: BitmapFacts): string[] {
  return [name, formatSize(granularity), flags.join(',')]
}

/** Ranges are given out as they are found: there can be millions. */
function extents(request: Request): void {
  const { path, args, io, options } = request
  const asJson = wantsJson(args)
  let before = asJson ? '[' : 'Offset          Length\n'
  let piece = ''
  const visit = ({ start, length }: ByteRange) => {
    piece += before
    before = asJson ? ',\n' : ''
    piece += asJson
      ? JSON.stringify({ start, length })
      : `${`0x${start.toString(16)}`.padEnd(16)}0x${length.toString(16)}\n`
    if (piece.length < PIECE) return
    io.out(piece)
    piece = ''
  }
  eachBitmapExtent(path, nameOf(request), visit, options)
  const end = asJson ? (before === '[' ? '[]\n' : ']\n') : before
  io.out(piece + end)
}

const PIECE = 1 << 16

function add({ path, name, args, io, options }: Request): void {
  const text = args.value('granularity')
  const added = addBitmap(path, name, text === undefined ? undefined : parseSize(text), options)
  io.out(wantsJson(args) ? json({ name: added }) : `${added}\n`)
}

function clear(request: Request): void {
  clearBitmap(request.path, nameOf(request), request.options)
}

function remove(request: Request): void {
  removeBitmap(request.path, nameOf(request), request.options)
}
