/** What crash states have found, each as a test of its own. */

import t from 'tap'
import type { Backing } from '../../lib/formats/driver.js'
import { findFormat } from '../../lib/formats/registry.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import { check } from '../crash/scenario.js'
import { WholeSectors } from '../crash/sectors.js'
import { create } from '../model/variants.js'

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

/** Every state that a crash can leave while an image gets another parent. @returns the names of the parents seen */
function parentsSeen(format: string, options: readonly string[], names: readonly [string, string]): Set<string> {
  const [before, after] = names.map((name) => parent(format, name))
  const child = memory('/folder/child')
  const driver = findFormat(format)
  create(driver, child, SIZE, options, before!)
  const recorder = new Recorder()
  const recorded = new WholeSectors(recorder.record(child))
  const context = { storage: recorded, path: '/folder/child', readOnly: false, warn: () => {} }
  driver.rebase!(driver.open(context).layout, [recorded], { path: '/folder/child', backing: after })
  const seen = new Set<string>()
  for (let moment = 0; moment <= recorder.length; moment++)
    for (let seed = 0; seed < SEEDS; seed++) {
      const [storage] = seed === 0 ? recorder.prefix(moment) : recorder.crash(moment, SEEDS * moment + seed, 512)
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

t.test('vhd: the header that names the parent, of two sectors, is never torn', async (t) => {
  const names = ['/folder/a', '/folder/another'] as const
  t.same(parentsSeen('vhd', ['block_size=4K'], names), new Set(names.map((name) => `${name} `)))
})
