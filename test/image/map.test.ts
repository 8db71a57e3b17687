/** `map` over chains, held against qemu-img's. */

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { must, vdiskfsMust } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

t.test('a chain of QCOW2 over raw: the same entries', async (t) => {
  const folder = temporaryFolder(t)
  const [base, middle, top] = ['base.raw', 'middle.qcow2', 'top.qcow2'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ]
  const io = (path: string, ...commands: string[]) =>
    must('qemu-io', ['-f', path.split('.').at(-1)!, ...commands.flatMap((command) => ['-c', command]), path])
  writeFileSync(base, '')
  must('qemu-img', ['resize', '-q', '-f', 'raw', base, '10M'])
  io(base, 'write -P 1 0 1M', 'write -P 2 5M 1M')
  must('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', base, middle])
  io(middle, 'write -P 3 1M 128k', 'write -z 5M 512k')
  must('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', middle, top, '12M'])
  io(top, 'write -P 4 3M 64k', 'write -z 7M 1M')
  for (const path of [base, middle, top]) {
    const format = ['-f', path.split('.').at(-1)!]
    const ours = JSON.parse(vdiskfsMust(['map', '--json', ...format, path])) as unknown
    t.same(ours, JSON.parse(must('qemu-img', ['map', '--output=json', ...format, path])), path)
  }
  const text = (out: string) => out.split('\n').map((line) => line.split(/\s+/).slice(0, 3))
  const theirs = text(must('qemu-img', ['map', top])).map((line) => line.map((word) => word.replace(/^0$/, '0x0')))
  t.same(text(vdiskfsMust(['map', top])), theirs, 'as a table')
})
