/** What crash states have found, each as a test of its own. */

import { writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import t from 'tap'
import type { Backing } from '../../lib/formats/driver.js'
import { encodeHeader, readHeader } from '../../lib/formats/qcow2/header.js'
import { findFormat } from '../../lib/formats/registry.js'
import { layersOver, openStorages } from '../../lib/image/open.js'
import { resizeLayer } from '../../lib/image/resize.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import { check } from '../crash/scenario.js'
import { WholeSectors } from '../crash/sectors.js'
import { contents } from '../metadata/fixtures/metadata.js'
import { create } from '../model/variants.js'
import { must } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

const SIZE = 300 * 1024
const SEEDS = 12

const memory = (path: string) => MemoryStorage.create({ path, maxSize: 2 ** 28 })

/** A parent that an image can name. */
function parent(format: string, path: string): Backing {
  const storage = memory(path)
  create(findFormat(format), storage, SIZE, [])
  const { layout, size } = findFormat(format).open({ storage, path, readOnly: true, warn: () => {} })
  return { path, format, layout, size, mtimeMs: 0 }
}

/**
 * Every state that a crash can leave while an image gets another parent. @returns the names of the parents seen
 * @param prepare changes the image before that
 * @param each is called with every state
 */
function parentsSeen(
  format: string,
  options: readonly string[],
  names: readonly [string, string],
  prepare: (child: MemoryStorage) => void = () => {},
  each: (storage: MemoryStorage) => void = () => {},
): Set<string> {
  const [before, after] = names.map((name) => parent(format, name))
  const child = memory('/folder/child')
  const driver = findFormat(format)
  create(driver, child, SIZE, options, before!)
  prepare(child)
  const recorder = new Recorder()
  const recorded = new WholeSectors(recorder.record(child))
  const context = { storage: recorded, path: '/folder/child', readOnly: false, warn: () => {} }
  driver.rebase!(driver.open(context).layout, [recorded], { path: '/folder/child', backing: after })
  const seen = new Set<string>()
  for (let moment = 0; moment <= recorder.length; moment++)
    for (let seed = 0; seed < SEEDS; seed++) {
      const [storage] = seed === 0 ? recorder.prefix(moment) : recorder.crash(moment, SEEDS * moment + seed, 512)
      each(storage!)
      const opened = driver.open({ storage: storage!, path: '/folder/child', readOnly: true, warn: () => {} })
      seen.add(`${opened.parent?.candidates.find((path) => names.includes(path))} ${opened.parent?.format ?? ''}`)
      const bad = check(driver, storage!, 'none').find(({ severity }) => severity === 'corruption')
      if (bad) seen.add(bad.message)
    }
  return seen
}

t.test('qcow2: a name of a parent that lies behind the first sector is never torn', async (t) => {
  const names = ['/folder/a', '/folder/a-much-longer-name-of-another-parent-that-takes-more-of-the-header'] as const
  const qcow2 = new Set(names.map((name) => `${name} qcow2`))
  for (const pair of [names, [...names].reverse() as [string, string]])
    for (const options of [[], ['extended_l2=on'], ['compat=0.10'], ['cluster_size=1K'], ['cluster_size=512']])
      t.same(parentsSeen('qcow2', options, pair), qcow2, `${pair[0]}, ${options}`)
})

/** An extension that no program knows, behind the others. */
const UNKNOWN = { type: 0x12345678, data: Buffer.alloc(1000, 'what a later version put here; ') }

const SKIPPED = 0x736b6970

t.test('qcow2: extensions that are larger than a sector are never torn', async (t) => {
  const path = join(temporaryFolder(t), 'between.qcow2')
  const names = ['/folder/a', `/folder/a-${'much-'.repeat(30)}longer-name`] as const
  const seen = new Set(names.map((name) => `${name} qcow2`))
  const prepare = (child: MemoryStorage) => {
    const header = readHeader(child)
    const bytes = encodeHeader({ ...header, extensions: [...header.extensions, UNKNOWN] }, child.path)
    child.write(bytes, 0, bytes.length, 0)
  }
  for (const pair of [names, [...names].reverse() as [string, string]])
    for (const options of [[], ['compat=0.10'], ['cluster_size=4K']]) {
      let torn = 0
      const between: MemoryStorage[] = []
      let skipped = false
      const each = (storage: MemoryStorage) => {
        const { extensions } = readHeader(storage)
        if (!extensions.some(({ type, data }) => type === UNKNOWN.type && UNKNOWN.data.equals(data))) torn++
        skipped = extensions.some(({ type }) => type === SKIPPED)
        if (skipped) between.push(storage)
      }
      t.same(parentsSeen('qcow2', options, pair, prepare, each), seen, `${pair[0]}, ${options}`)
      t.equal(torn, 0)
      t.notOk(skipped, 'nothing is left over in the end')
      writeFileSync(path, contents(between[0]!))
      const info = JSON.parse(must('qemu-img', ['info', '--output=json', '-f', 'qcow2', path])) as Record<
        string,
        unknown
      >
      t.equal(
        basename(String(info['backing-filename'])),
        basename(pair[1]),
        'QEMU understands what is there in between',
      )
    }
})

t.test('vhd: the header that names the parent, of two sectors, is never torn', async (t) => {
  const names = ['/folder/a', '/folder/another'] as const
  t.same(parentsSeen('vhd', ['block_size=4K'], names), new Set(names.map((name) => `${name} vhd`)))
})

t.test('vhd: a resize between the footer and its copy is a warning, and ended by whoever writes', async (t) => {
  const vhd = findFormat('vhd')
  const image = memory('image')
  create(vhd, image, SIZE, ['block_size=4K'])
  const recorder = new Recorder()
  const [layer] = layersOver([recorder.record(image)])
  resizeLayer(layer!, 2 * SIZE, () => [])
  const ends: Record<string, (storage: MemoryStorage) => void> = {
    'opening for writing': (storage) => openStorages([storage]).close(),
    'check --repair leaks': (storage) => void check(vhd, storage, 'leaks'),
    'check --repair all': (storage) => void check(vhd, storage, 'all'),
  }
  const between = () => {
    const states = Array.from({ length: recorder.length + 1 }, (_, moment) => recorder.prefix(moment)[0]!)
    return states.filter((storage) => check(vhd, storage, 'none').some(({ what }) => what === 'footer-differs'))
  }
  t.equal(between().length, 1, 'the two are written one after the other')
  for (const [name, end] of Object.entries(ends)) {
    const [storage] = between()
    const { size } = openStorages([storage!], { readOnly: true })
    t.match(check(vhd, storage!, 'none'), [{ severity: 'warning', what: 'footer-differs', repairable: true }])
    end(storage!)
    t.same(check(vhd, storage!, 'none'), [], name)
    t.equal(openStorages([storage!], { readOnly: true }).size, size, 'the one at the end counts')
    const copy = new Uint8Array(512)
    const footer = new Uint8Array(512)
    storage!.read(copy, 0, 512, 0)
    storage!.read(footer, 0, 512, storage!.size() - 512)
    t.same(copy, footer)
  }
})
