/** `vdiskfs snapshot list|create|apply|delete IMAGE [NAME]`. */

import type { Facts, SnapshotFacts } from '../../formats/driver.js'
import { snapshotFacts } from '../../image/info.js'
import {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
  type SnapshotOptions,
} from '../../image/snapshots.js'
import { VdiskError } from '../../util/errors.js'
import { formatSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { columns, json, wantsJson } from '../output.js'

interface Request {
  readonly path: string
  readonly name: string | undefined
  readonly args: Arguments
  readonly io: Io
  readonly options: SnapshotOptions
}

const ACTIONS: Readonly<Record<string, (request: Request) => void>> = {
  list,
  create: (request) => {
    const id = createSnapshot(request.path, nameOf(request), request.options)
    request.io.out(wantsJson(request.args) ? json({ id }) : `${id}\n`)
  },
  apply: (request) => applySnapshot(request.path, nameOf(request), request.options),
  delete: (request) => deleteSnapshot(request.path, nameOf(request), request.options),
}

export function run(args: Arguments, io: Io): number {
  const [action, path, name] = args.positionals as [string, string, string | undefined]
  const act = ACTIONS[action]
  if (!act) throw new VdiskError('USAGE', `snapshot ${action}: expected ${Object.keys(ACTIONS).join(', ')}`)
  if (action === 'list' && name !== undefined) throw new VdiskError('USAGE', `snapshot list: '${name}' is one too many`)
  const warn = (text: string) => io.err(`vdiskfs: ${text}\n`)
  const options = { format: args.value('format'), backingDirs: args.values('backing-dir'), warn }
  act({ path, name, args, io, options })
  return 0
}

/** The snapshot that is meant. @throws USAGE where none is named */
function nameOf({ name, args }: Request): string {
  if (name === undefined)
    throw new VdiskError('USAGE', `snapshot ${args.positionals[0]}: which snapshot? NAME is missing`)
  return name
}

function list({ path, args, io, options }: Request): void {
  const found = listSnapshots(path, options)
  if (wantsJson(args)) io.out(json(found.map(facts)))
  else if (found.length > 0) io.out(snapshotTable(found.map(facts)))
}

/** The keys of `qemu-img info --output=json`, and the date once more for people. */
function facts(snapshot: SnapshotFacts): Facts {
  return {
    ...snapshotFacts(snapshot),
    date: dateOf(snapshot).toISOString(),
    ...(snapshot.diskSize !== undefined && { 'disk-size': snapshot.diskSize }),
  }
}

function dateOf({ dateSeconds, dateNanoseconds }: SnapshotFacts): Date {
  return new Date(dateSeconds * 1000 + Math.floor(dateNanoseconds / 1e6))
}

const HEAD = ['ID', 'NAME', 'VM STATE', 'DATE (UTC)', 'VM CLOCK']

/** The lines of a list of snapshots, from their facts. */
export function snapshotTable(snapshots: readonly Facts[]): string {
  return columns([HEAD, ...snapshots.map(row)])
}

function row(snapshot: Facts): string[] {
  const { id, name, error } = snapshot
  if (error !== undefined) return ['', String(error)]
  const date = new Date(Number(snapshot['date-sec']) * 1000).toISOString().slice(0, 19).replace('T', ' ')
  const clock = clockOf(Number(snapshot['vm-clock-sec']), Number(snapshot['vm-clock-nsec']))
  return [String(id), String(name), formatSize(Number(snapshot['vm-state-size'])), date, clock]
}

/** Hours, minutes, seconds, milliseconds. */
function clockOf(seconds: number, nanoseconds: number): string {
  const two = (value: number) => String(Math.floor(value)).padStart(2, '0')
  const parts = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(two)
  return `${parts.join(':')}.${String(Math.floor(nanoseconds / 1e6)).padStart(3, '0')}`
}
