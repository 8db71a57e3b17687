import { closeSync, readSync, writeSync } from 'node:fs'
import t from 'tap'
import { isReady, makeReadyProbe } from '../../lib/native/descriptors.js'
import { makePipe } from '../../lib/native/pipes.js'

t.test('what is ready to be read: something, or the end', async (t) => {
  const { reader, writer } = makePipe()
  t.teardown(() => closeSync(reader))
  const ready = makeReadyProbe(reader)
  t.equal(ready(), false, 'nothing yet')
  writeSync(writer, 'x')
  t.equal(ready(), true)
  t.equal(isReady(reader), true)
  readSync(reader, Buffer.alloc(1), 0, 1, null)
  t.equal(ready(), false, 'nothing again, by the same probe')
  closeSync(writer)
  t.equal(ready(), true, 'nothing will ever come')
})

t.test('a descriptor that is none is for read(2) to tell', async (t) => {
  t.equal(isReady(1 << 20), true)
})
