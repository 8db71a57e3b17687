import t from 'tap'
import { kernelIsAtLeast } from '../../lib/native/kernel.js'

t.test('which kernel is new enough', async (t) => {
  const kernels = [
    '5.19.0',
    '5.4.0-212-generic',
    '6.1.0-9-amd64',
    '6.15.9-arch1-1',
    '6.16.0',
    '6.18.44',
    '7.0-rc1',
    '10.2',
  ]
  t.same(
    kernels.filter((kernel) => kernelIsAtLeast(6, 16, kernel)),
    ['6.16.0', '6.18.44', '7.0-rc1', '10.2'],
  )
  t.equal(kernelIsAtLeast(2, 6), true, 'this one is')
})
