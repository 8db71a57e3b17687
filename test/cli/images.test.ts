/** info, map and create, beside qemu-img: the same keys, the same facts. */

import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import t from 'tap'
import { CLI, must, run, vdiskfs, vdiskfsMust } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

const MiB = 1 << 20

/** 8 MiB with a hole, 64 KiB of data at 1 MiB and at 5 MiB. */
function sparse(path: string): string {
  writeFileSync(path, '')
  truncateSync(path, 8 * MiB)
  const fd = openSync(path, 'r+')
  for (const at of [MiB, 5 * MiB]) writeSync(fd, Buffer.alloc(65536, 0x5a), 0, 65536, at)
  closeSync(fd)
  return path
}

type Run = { start: number; length: number; zero: boolean; data: boolean; offset?: number }
const facts = ({ start, length, zero, data, offset }: Run) => ({ start, length, zero, data, offset })

t.test('map --json of a raw file is what qemu-img says', async (t) => {
  const image = sparse(join(temporaryFolder(t), 'i.raw'))
  const ours = JSON.parse(vdiskfsMust(['map', '--json', image])) as Run[]
  const theirs = JSON.parse(must('qemu-img', ['map', '-f', 'raw', '--output=json', image])) as Run[]
  t.same(ours.map(facts), theirs.map(facts))
  t.same(Object.keys(ours[0]!).sort(), ['data', 'depth', 'length', 'offset', 'present', 'start', 'zero'])
  t.equal(vdiskfsMust(['map', '--output=json', image]), vdiskfsMust(['map', '--json', image]))
})

t.test('map for people is what qemu-img prints', async (t) => {
  const image = sparse(join(temporaryFolder(t), 'i.raw'))
  t.equal(vdiskfsMust(['map', '-f', 'raw', image]), must('qemu-img', ['map', '-f', 'raw', image]))
})

t.test('map of a part', async (t) => {
  const image = sparse(join(temporaryFolder(t), 'i.raw'))
  const part = JSON.parse(vdiskfsMust(['map', '--json', '-s', '5M', '-l', '64K', image])) as Run[]
  t.same(part.map(facts), [{ start: 5 * MiB, length: 65536, zero: false, data: true, offset: 5 * MiB }])
  t.same(JSON.parse(vdiskfsMust(['map', '--json', '-s', '8M', image])), [], 'behind the end there is nothing')
})

t.test('info has the keys and figures of qemu-img', async (t) => {
  const image = sparse(join(temporaryFolder(t), 'i.raw'))
  const ours = JSON.parse(vdiskfsMust(['info', '--json', image]))
  const theirs = JSON.parse(must('qemu-img', ['info', '-f', 'raw', '--output=json', image]))
  for (const key of ['virtual-size', 'filename', 'format', 'actual-size']) t.equal(ours[key], theirs[key], key)
  const text = vdiskfsMust(['info', image])
  t.match(text, `image: ${image}\nfile format: raw\nvirtual size: 8 MiB (8388608 bytes)\ndisk size: 128 KiB\n`)
  t.same(JSON.parse(vdiskfsMust(['info', '--chain', '--json', image])), [ours], 'a chain is an array')
})

t.test('create makes what it was asked for, and says so', async (t) => {
  const folder = temporaryFolder(t)
  const image = join(folder, '1e3')
  t.equal(
    vdiskfsMust(['create', '-f', 'raw', '1e3', '3M'], { cwd: folder }),
    'created 1e3: raw, 3 MiB (3145728 bytes)\n',
  )
  t.equal(statSync(image).size, 3 * MiB)
  t.equal(vdiskfsMust(['create', '-q', '-f', 'raw', join(folder, 'q'), '512']), '')
  t.equal(statSync(join(folder, 'q')).size, 512)
})

t.test('create never touches what is there, and leaves nothing behind where it fails', async (t) => {
  const folder = temporaryFolder(t)
  const there = join(folder, 'there')
  writeFileSync(there, 'precious')
  const again = vdiskfs(['create', '-f', 'raw', there, '1M'])
  t.equal(again.code, 1)
  t.match(again.err, /there.*exists/)
  t.equal(readFileSync(there, 'utf8'), 'precious')
  for (const words of [['12Q'], [], ['1M', '-o', 'nonsense=1']]) {
    const made = join(folder, 'new')
    t.equal(vdiskfs(['create', '-f', 'raw', made, ...words]).code, 2, words.join(' '))
    t.notOk(existsSync(made))
  }
})

t.test('a reader that goes away ends it quietly', async (t) => {
  const image = join(temporaryFolder(t), 'i.raw')
  const fd = openSync(image, 'w')
  // More runs than a pipe holds lines.
  for (let i = 0; i < 4000; i++) writeSync(fd, Buffer.alloc(4096, 1), 0, 4096, i * 8192)
  closeSync(fd)
  t.ok(vdiskfsMust(['map', '--json', image]).length > 200_000)
  const script = `"$1" "$2" map --json "$3" | head -n 1; echo "\${PIPESTATUS[0]}"`
  const { out, err } = run('bash', ['-c', script, 'bash', process.execPath, CLI, image])
  t.match(out, /^\[\{"start":0,.*\n0\n$/)
  t.equal(err, '')
})

t.test('sizes in hexadecimal are those of qemu-img', async (t) => {
  const folder = temporaryFolder(t)
  const [ours, theirs] = [join(folder, 'ours.qcow2'), join(folder, 'theirs.qcow2')]
  const size = (path: string) => JSON.parse(must('qemu-img', ['info', '--output=json', path]))['virtual-size']
  vdiskfsMust(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=0x1000', ours, '0x40000000'])
  must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=0x1000', theirs, '0x40000000'])
  t.equal(size(ours), size(theirs))
  vdiskfsMust(['resize', '-q', ours, '+0x100000'])
  must('qemu-img', ['resize', '-q', theirs, '+0x100000'])
  t.equal(size(ours), size(theirs))
  const part = JSON.parse(vdiskfsMust(['map', '--json', '-s', '0x1000', '-l', '0x2000', ours])) as Run[]
  t.match(part, [{ start: 0x1000, length: 0x2000 }])
})

t.test('create -u names a parent that is not there, as qemu-img does', async (t) => {
  const folder = temporaryFolder(t)
  const facts = (path: string) => {
    const { filename, 'actual-size': _, ...rest } = JSON.parse(must('qemu-img', ['info', '--output=json', path]))
    t.equal(filename, path)
    return rest
  }
  const made = (program: (args: string[]) => string, name: string, ...words: string[]) => {
    const path = join(folder, name)
    program(['create', '-q', '-u', '-f', 'qcow2', '-b', 'gone.vhd', '-F', 'vpc', ...words, path, '1G'])
    return facts(path)
  }
  const ours = made((args) => vdiskfsMust(args, { cwd: folder }), 'ours.qcow2')
  t.equal(ours['backing-filename'], 'gone.vhd')
  t.same(
    ours,
    made((args) => must('qemu-img', args, { cwd: folder }), 'theirs.qcow2'),
  )
  const path = join(folder, 'none')
  for (const [words, why] of [
    [['-f', 'qcow2', '-b', 'gone', path, '1G'], /needs its format \(-F FMT\), and the new image a SIZE/],
    [['-f', 'qcow2', '-b', 'gone', '-F', 'raw', path], /needs its format/],
    [['-f', 'qcow2', '-b', 'gone', '-F', 'rwa', path, '1G'], /rwa/],
    [['-f', 'vhdx', '-b', 'gone', '-F', 'vhdx', path, '1G'], /vhdx has its parent's identifier/],
    [['-f', 'vhd', '-b', 'gone', '-F', 'vhd', path, '1G'], /vhd has its parent's identifier/],
  ] as const) {
    t.match(vdiskfs(['create', '-u', ...words]), { code: 2, out: '', err: why }, words.join(' '))
    t.notOk(existsSync(path))
  }
  const rebased = vdiskfs(['rebase', '-u', '-b', 'gone', '-F', 'rwa', join(folder, 'ours.qcow2')])
  t.match(rebased, { code: 2, err: /rwa/ }, 'a format that there is not is written into no image')
  t.same(facts(join(folder, 'ours.qcow2')), ours)
})

t.test('convert -l takes what that of qemu-img takes', async (t) => {
  const folder = temporaryFolder(t)
  const image = join(folder, 'image.qcow2')
  must('qemu-img', ['create', '-q', '-f', 'qcow2', image, '1M'])
  // The name of the second is the ID of the first.
  for (const [i, name] of ['a,b', '1'].entries()) {
    must('qemu-io', ['-f', 'qcow2', '-c', `write -P ${i + 1} 0 64k`, image])
    must('qemu-img', ['snapshot', '-c', name, image])
  }
  must('qemu-io', ['-f', 'qcow2', '-c', 'write -P 9 0 64k', image])
  const [ours, theirs] = [join(folder, 'ours.raw'), join(folder, 'theirs.raw')]
  for (const [word, content] of [
    ['snapshot.id=1', 1],
    ['snapshot.name=1', 2],
    ['snapshot.name=a,,b', 1],
    ['snapshot.id=2,snapshot.name=1', 2],
    ['snapshot.name=a,,b,snapshot.id=1', 1],
    ['2', 2],
    ['a,b', 1],
  ] as const) {
    vdiskfsMust(['convert', '-l', word, image, ours])
    must('qemu-img', ['convert', '-l', word, '-O', 'raw', image, theirs])
    t.equal(readFileSync(ours)[0], content, word)
    t.ok(readFileSync(ours).equals(readFileSync(theirs)), word)
  }
  for (const word of ['snapshot.id=a,,b', 'snapshot.id=1,snapshot.name=1', 'snapshot.name=a,b', 'snapshot.nam=1'])
    t.match(vdiskfs(['convert', '-l', word, image, ours]), { code: 1, err: /image\.qcow2: no snapshot/ }, word)
  t.match(vdiskfs(['convert', '-l', '1', image, ours]), { code: 2, err: /could be any of .*: say snapshot\.id=ID/ })
  vdiskfsMust(['snapshot', 'delete', image, 'snapshot.name=1'])
  t.match(vdiskfsMust(['snapshot', 'list', image]), /\n1 +a,b/)
})

for (const format of ['vhd', 'vhdx'])
  t.test(`resize: the parent of other images beside it, ${format}`, async (t) => {
    const folder = temporaryFolder(t)
    const [parent, child, other] = ['parent', 'child', 'other'].map((name) => join(folder, name))
    vdiskfsMust(['create', '-q', '-f', format, parent!, '8M'])
    vdiskfsMust(['create', '-q', '-f', format, '-b', parent!, child!])
    vdiskfsMust(['create', '-q', '-f', format, other!, '8M'])
    writeFileSync(join(folder, 'text'), 'no image at all')
    mkdirSync(join(folder, 'elsewhere'))
    symlinkSync(parent!, join(folder, 'elsewhere', 'link'))
    const before = readFileSync(parent!)
    for (const path of [parent!, join(folder, 'elsewhere', 'link')]) {
      const refused = vdiskfs(['resize', path, '+1M'])
      t.match(refused, { code: 2, out: '', err: /child is made over it, .* say --force/ })
      t.match(refused.err, path)
    }
    t.ok(readFileSync(parent!).equals(before), 'nothing is written')
    vdiskfsMust(['resize', '-q', parent!, '8M'])
    vdiskfsMust(['resize', '-q', child!, '+1M'])
    vdiskfsMust(['resize', '-q', other!, '+1M'])
    vdiskfsMust(['resize', '-q', '--force', parent!, '+1M'])
    t.equal(JSON.parse(vdiskfsMust(['info', '--json', parent!]))['virtual-size'], 9 * MiB)
  })

t.test('check and compare: what fails has an exit code of its own', async (t) => {
  const folder = temporaryFolder(t)
  const image = sparse(join(folder, 'i.raw'))
  // 2 would say that errors were found.
  for (const words of [[folder], ['-f', 'nonsense', image], [join(folder, 'none')]])
    t.match(vdiskfs(['check', ...words]), { code: 1, out: '', err: /^vdiskfs: [^\n]+\n$/ }, words.join(' '))
  // 1 would say that they are not the same.
  t.equal(vdiskfs(['compare', image, join(folder, 'none')]).code, 2)
  const full = run('bash', ['-c', '"$@" >/dev/full', 'bash', process.execPath, CLI, 'compare', image, image])
  t.match(full, { code: 2, err: /standard output/ })
})

t.test('info without --chain says what the image says of its parent, as qemu-img does', async (t) => {
  const folder = temporaryFolder(t)
  for (const [name, format] of [
    ['gone.vhd', 'vpc'],
    ['/nowhere/base', 'raw'],
  ] as const) {
    must('qemu-img', ['create', '-q', '-u', '-f', 'qcow2', '-b', name, '-F', format, 'x', '1M'], { cwd: folder })
    for (const image of ['x', `../${basename(folder)}/x`, join(folder, 'x')]) {
      const ours = JSON.parse(vdiskfsMust(['info', '--json', image], { cwd: folder }))
      const theirs = JSON.parse(must('qemu-img', ['info', '--output=json', image], { cwd: folder }))
      for (const key of ['backing-filename', 'full-backing-filename', 'backing-filename-format'])
        t.equal(ours[key], theirs[key], `${image} ${key}`)
      const lines = (text: string) => text.match(/^backing file.*$/gm)
      t.same(
        lines(vdiskfsMust(['info', image], { cwd: folder })),
        lines(must('qemu-img', ['info', image], { cwd: folder })),
      )
    }
  }
})

t.test('options that would have no effect are refused', async (t) => {
  const folder = temporaryFolder(t)
  const image = join(folder, 'image.qcow2')
  vdiskfsMust(['create', '-q', '-f', 'qcow2', image, '1M'])
  const made = join(folder, 'made')
  for (const [words, why] of [
    [['create', '-f', 'qcow2', '-F', 'raw', made, '1M'], /made: the format raw of a parent is given, and no parent/],
    [['convert', '-O', 'qcow2', '-F', 'raw', image, made], /made: the format raw of a parent is given, and no parent/],
    [['convert', '-n', '-O', 'qcow2', '-F', 'raw', image, made], /and no parent/],
    [['bitmap', 'list', image, 'name'], /'name' is one too many/],
    [['bitmap', 'clear', '-g', '64K', image, 'name'], /only add has -g/],
    [['snapshot', 'list', image, 'name'], /'name' is one too many/],
    [['info', '--log', '--chain', image], /--log or --chain/],
  ] as const)
    t.match(vdiskfs([...words]), { code: 2, out: '', err: why }, words.join(' '))
  t.notOk(existsSync(made))
  t.same(vdiskfs(['check', '-q', '--json', image]), { code: 0, out: '', err: '' })
  t.same(JSON.parse(vdiskfsMust(['bitmap', 'add', '--json', image, 'b'])), { name: 'b' })
  t.same(JSON.parse(vdiskfsMust(['snapshot', 'create', '--output=json', image, 's'])), { id: '1' })
})

t.test('a message names the file, whatever its name', async (t) => {
  const folder = temporaryFolder(t)
  mkdirSync(join(folder, 'd'))
  t.match(vdiskfs(['info', 'd'], { cwd: folder }).err, /^vdiskfs: d: it is a directory/)
  const there = join(folder, 'target')
  for (const name of ['source', 'target', 'base'])
    vdiskfsMust(['create', '-q', '-f', 'qcow2', join(folder, name), '1M'])
  vdiskfsMust(['rebase', '-q', '-u', '-b', join(folder, 'base'), there])
  const absent = vdiskfs(['convert', '-n', '-B', '/nowhere/x', '-O', 'qcow2', join(folder, 'source'), there])
  t.match(absent, { code: 1, err: 'vdiskfs: cannot open /nowhere/x: no such file or directory\n' })
})

t.test('info --json has the size of clusters and the dirty flag where qemu-img has them', async (t) => {
  const folder = temporaryFolder(t)
  for (const [format, theirName] of [
    ['raw', 'raw'],
    ['qcow2', 'qcow2'],
    ['vhd', 'vpc'],
    ['vhdx', 'vhdx'],
  ] as const) {
    const image = join(folder, format)
    vdiskfsMust(['create', '-q', '-f', format, image, '8M'])
    const ours = JSON.parse(vdiskfsMust(['info', '--json', image]))
    const theirs = JSON.parse(must('qemu-img', ['info', '-f', theirName, '--output=json', image]))
    for (const key of ['cluster-size', 'dirty-flag']) t.equal(ours[key], theirs[key], `${format} ${key}`)
  }
  const dirty = join(folder, 'qcow2')
  const bytes = readFileSync(dirty)
  // The first incompatible feature.
  bytes[79]! |= 1
  writeFileSync(dirty, bytes)
  t.equal(JSON.parse(vdiskfsMust(['info', '--json', dirty]))['dirty-flag'], true)
})
