/** The same with files in a folder: through the gate, the locks, and everything that looks at a path. */

import { spawnSync } from 'node:child_process'
import fs, { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync } from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { checkImage } from '../../lib/image/check.js'
import { chainInfo, imageInfo } from '../../lib/image/info.js'
import { openImage } from '../../lib/image/open.js'
import { secret } from '../model/variants.js'
import { attempt, type Counts, checkMessage, Find, lookAt } from './exercise.js'
import type { Random } from './mutate.js'
import type { Pages } from './pages.js'
import type { Seed } from './seeds.js'

/** Paths that were opened, or changed in another way, since it was emptied. */
const opened: string[] = []

/** What of `node:fs` begins with a path and opens or changes what is there. */
const BY_PATH = [
  'openSync',
  'writeFileSync',
  'appendFileSync',
  'truncateSync',
  'renameSync',
  'linkSync',
  'symlinkSync',
  'unlinkSync',
  'rmSync',
  'mkdirSync',
  'copyFileSync',
  'chmodSync',
  'utimesSync',
] as const

type ByPath = (path: unknown, ...rest: unknown[]) => unknown

/** Notes every file that is opened or changed by its path from now on, by whomever in this thread. */
export function watchOpens(): void {
  const functions = fs as unknown as Record<string, ByPath>
  for (const name of BY_PATH) {
    const real = functions[name]!
    functions[name] = (path, ...rest) => {
      if (typeof path !== 'number') opened.push(String(path))
      return real(path, ...rest)
    }
  }
  syncBuiltinESMExports()
}

/** @returns what says which files were opened since then. Behind `watchOpens`. */
export function openedSince(): () => readonly string[] {
  opened.length = 0
  return () => opened.filter((path) => path !== process.execPath)
}

/** A folder for images, with things beside them that no image may have opened. */
export class Folder {
  readonly path: string

  constructor() {
    this.path = mkdtempSync(join(tmpdir(), 'vdiskfs-test-'))
    spawnSync('mkfifo', [join(this.path, 'fifo')])
    symlinkSync('/etc/passwd', join(this.path, 'link'))
    mkdirSync(join(this.path, 'folder'))
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true })
  }

  /** @throws Find */
  exercise(seed: Seed, files: readonly Pages[], random: Random, counts: Counts): void {
    const paths = files.map((pages, i) => this.#write(seed.files[i]!.name, pages))
    try {
      this.#use(paths[0]!, random, counts)
      this.#checkOpened()
    } finally {
      for (const made of paths) rmSync(made, { force: true })
    }
  }

  #use(path: string, random: Random, counts: Counts): void {
    const before = this.#state()
    opened.length = 0
    const warn = (message: string) => checkMessage('a warning', message)
    const image = attempt('open files', counts, () => openImage(path, { readOnly: true, secret, warn }))
    if (image) {
      lookAt(image, random, counts)
      attempt('close', counts, () => image.close())
    }
    attempt('info', counts, () => JSON.stringify(imageInfo(path)))
    attempt('info of the chain', counts, () => JSON.stringify(chainInfo(path)))
    attempt('check files', counts, () => {
      for (const { message } of checkImage(path, { warn }).findings) checkMessage('a finding', message)
    })
    const after = this.#state()
    if (after !== before) throw new Find(`reading it changed files:\n${before}\n${after}`)
    attempt('write files', counts, () => {
      const writable = openImage(path, { secret, warn })
      try {
        writable.write(new Uint8Array(Math.min(3000, writable.size)).fill(7), 0, Math.min(3000, writable.size), 0)
        writable.flush()
      } finally {
        writable.close()
      }
    })
    attempt('repair files', counts, () => checkImage(path, { repair: 'all', warn }))
  }

  #write(name: string, pages: Pages): string {
    const path = join(this.path, name)
    pages.toFile(path)
    return path
  }

  #state(): string {
    return readdirSync(this.path)
      .map((name) => {
        const { size, mtimeMs, ino, blocks } = statSync(join(this.path, name))
        return `${name} ${size} ${mtimeMs} ${ino} ${blocks}`
      })
      .join('\n')
  }

  /** /proc: who holds a lock, and where a descriptor leads; ourselves: for the C library. */
  #checkOpened(): void {
    const outside = opened.find(
      (path) => !path.startsWith(`${this.path}/`) && !path.startsWith('/proc/') && path !== process.execPath,
    )
    if (outside !== undefined) throw new Find(`it had ${outside} opened`)
    if (readdirSync('/proc/self/fd').length > 100) throw new Find('descriptors are left open')
  }
}
