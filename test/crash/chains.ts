/** Crashes in the middle of what works on an image and its parents: committing, changing the parent, resizing over one. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { checkImage } from '../../lib/image/check.js'
import { commitImage } from '../../lib/image/commit.js'
import { rebaseImage } from '../../lib/image/rebase.js'
import { resizeImage } from '../../lib/image/resize.js'
import type { MemoryStorage } from '../../lib/storage/memory.js'
import type { Recorder } from '../../lib/storage/recording.js'
import { secret } from '../model/variants.js'
import { must } from '../support/run.js'
import { edit, type Family, type Kind, look, makeFamily } from './families.js'
import { RecordedFiles } from './files.js'

interface Operation {
  readonly name: string
  exists(kind: Kind): boolean
  /** Is done again behind a crash, wherever that was. */
  run(family: Family): void
  /** The disk is that large then. Default: as before. */
  readonly size?: (before: number) => number
  /** Its parent shows the same then. */
  readonly commits?: boolean
}

const always = () => true
const isQcow2 = ({ format }: Kind) => format === 'qcow2'
/** Of a VHD, what is new would show a parent that is longer. */
const isLonger = ({ format, members: [top, parent] }: Kind) => format !== 'vhd' || top!.size >= parent!.size
const LARGER = 77 * 1024
const larger = (size: number) => size + LARGER

const OPERATIONS: readonly Operation[] = [
  { name: 'commit', exists: always, run: ({ top }) => commitImage(top, { secret }), commits: true },
  { name: 'commit --keep', exists: always, run: ({ top }) => commitImage(top, { secret, keep: true }), commits: true },
  { name: 'rebase', exists: always, run: ({ top, other }) => rebaseImage(top, { backing: other, secret }) },
  { name: 'rebase to none', exists: isQcow2, run: ({ top }) => rebaseImage(top, { backing: undefined, secret }) },
  {
    name: 'rebase -u',
    exists: always,
    run: ({ top, twin }) => rebaseImage(top, { backing: twin, unsafe: true, secret }),
  },
  {
    name: 'resize',
    exists: isLonger,
    run: ({ top, kind }) => resizeImage(top, { size: larger(kind.members[0]!.size), secret }),
    size: larger,
  },
]

/** A run of an operation on a family. */
export interface RecordedChain {
  readonly name: string
  readonly seed: number
  readonly recorder: Recorder
  readonly family: Family
  readonly operation: Operation
  readonly files: RecordedFiles
  /** The disk before it. */
  readonly before: Buffer
}

/**
 * Every operation that a kind can do, each on a family of its own.
 * @param folders gives folders that are empty
 */
export function* recordChains(kind: Kind, seed: number, folders: () => string): Generator<RecordedChain> {
  for (const operation of OPERATIONS) {
    if (!operation.exists(kind)) continue
    const family = makeFamily(kind, folders(), seed)
    const before = look(family.top).bytes
    const files = new RecordedFiles([family.top, family.parent])
    files.during(() => operation.run(family))
    const name = `${operation.name} of ${kind.name}`
    yield { name, seed, recorder: files.recorder, family, operation, files, before }
  }
}

/** What of a state is looked at besides the content and `check`, which always are. */
export interface Depth {
  /** Whether it can be done again, and the disk be written. */
  readonly again: boolean
  readonly qemu: boolean
}

/**
 * Looks at what a crash left.
 * @param ended the operation had ended before
 * @returns what is wrong, or undefined
 */
export function checkChain(
  run: RecordedChain,
  state: readonly MemoryStorage[],
  ended: boolean,
  { again, qemu }: Depth,
): string | undefined {
  const { family, operation, files } = run
  files.restore(state)
  try {
    return (
      checkContent(run, ended) ??
      checkFiles(family) ??
      (ended && operation.commits ? checkParent(run) : undefined) ??
      (qemu ? checkWithQemu(run) : undefined) ??
      (again ? checkAgain(run) : undefined)
    )
  } catch (error) {
    return (error as Error).stack
  }
}

/** A VHD knows its parent by its time, too. */
const KNOWN_WARNING = /was changed after the child was made/

function checkContent({ family, operation, before }: RecordedChain, ended: boolean): string | undefined {
  const { bytes, warnings } = look(family.top)
  const warning = warnings.find((text) => !KNOWN_WARNING.test(text))
  if (warning !== undefined) return `a warning: ${warning}`
  const after = operation.size?.(before.length) ?? before.length
  if (bytes.length !== after && (ended || bytes.length !== before.length)) return `the disk has ${bytes.length} bytes`
  return differs(bytes, before, 'the disk')
}

/** What is behind the old end is zeros. */
function differs(bytes: Buffer, before: Buffer, name: string): string | undefined {
  const expected = Buffer.alloc(bytes.length)
  before.copy(expected)
  if (bytes.equals(expected)) return undefined
  return `${name} differs from byte ${bytes.findIndex((byte, i) => byte !== expected[i])} on`
}

/** Leaks at most, and, where there were some, none behind their repair. */
function checkFiles({ top, parent }: Family): string | undefined {
  for (const path of [top, parent]) {
    const { findings } = checkImage(path)
    const bad = findings.find(({ severity }) => severity === 'corruption')
    if (bad) return `check says of ${path}: ${bad.message}`
  }
  return undefined
}

function checkParent({ family, before }: RecordedChain): string | undefined {
  return differs(look(family.parent).bytes.subarray(0, before.length), before, 'the parent')
}

function checkAgain(run: RecordedChain): string | undefined {
  const { family, operation } = run
  const { top } = family
  operation.run(family)
  const wrong = checkContent(run, true) ?? checkFiles(family) ?? (operation.commits ? checkParent(run) : undefined)
  if (wrong !== undefined) return `when it was done again: ${wrong}`
  const expected = look(top).bytes
  expected.fill(SOME_BYTE, WRITTEN.start, WRITTEN.end)
  edit(top, (disk) => {
    disk.write(expected, WRITTEN.start, WRITTEN.end - WRITTEN.start, WRITTEN.start)
    disk.flush()
  })
  return look(top).bytes.equals(expected) ? undefined : 'after it was done again and written it holds something else'
}

const SOME_BYTE = 0x77
const WRITTEN = { start: 30_000, end: 60_000 }

/** What QEMU makes of a state when leaks are repaired: it has to find nothing, and read the same. */
function checkWithQemu({ family }: RecordedChain): string | undefined {
  const { top, parent, kind } = family
  if (!kind.qemu) return undefined
  for (const path of [top, parent]) {
    const { format } = checkImage(path, { repair: 'leaks' })
    if (format === 'qcow2') must('qemu-img', ['check', '-q', '-f', 'qcow2', path])
  }
  const raw = join(top, '..', 'raw')
  must('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', top, raw])
  return readFileSync(raw).equals(look(top).bytes) ? undefined : 'QEMU reads something else'
}
