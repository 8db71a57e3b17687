import t from 'tap'
import { errnoOf } from '../../lib/transports/errno.js'
import { type ErrorCode, VdiskError } from '../../lib/util/errors.js'

t.test('every code has the errno that a block device would answer with', async (t) => {
  // Numbers of Linux, include/uapi/asm-generic/errno*.h.
  const expected: Record<ErrorCode, number> = {
    USAGE: 22, // EINVAL
    NOT_FOUND: 2, // ENOENT
    EXISTS: 17, // EEXIST
    ACCESS: 13, // EACCES
    FORMAT: 5, // EIO
    CORRUPT: 5,
    UNSUPPORTED: 95, // EOPNOTSUPP
    GATE: 13,
    IN_USE: 16, // EBUSY
    READ_ONLY: 30, // EROFS
    RANGE: 28, // ENOSPC
    NO_SPACE: 28,
    IO: 5,
    INTERNAL: 5,
  }
  for (const [code, errno] of Object.entries(expected))
    t.equal(errnoOf(new VdiskError(code as ErrorCode, 'x')), errno, code)
})

t.test("the host's errno where it means something to the guest", async (t) => {
  t.equal(errnoOf(new VdiskError('IO', 'x', { errno: 'ENOSPC' })), 28)
  t.equal(errnoOf(new VdiskError('NO_SPACE', 'x', { errno: 'EDQUOT' })), 122)
  t.equal(errnoOf(new VdiskError('IO', 'x', { errno: 'EBADF' })), 5)
})

t.test('anything else is EIO', async (t) => {
  for (const thrown of [new Error('x'), 'x', undefined, null, { code: 'ENOSPC' }, new VdiskError('NEW' as never, 'x')])
    t.equal(errnoOf(thrown), 5)
})
