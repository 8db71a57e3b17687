/** What fusermount3 refuses, as it says it (3.14), and what the user is told. */

import t from 'tap'
import { refusal } from '../../lib/transports/fusermount.js'
import { joinOptions } from '../../lib/transports/options.js'

const CASES: readonly (readonly [said: string, code: string, told: RegExp])[] = [
  [
    "/usr/bin/fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n",
    'ACCESS',
    /^cannot mount on \/m: --allow-other needs a line user_allow_other in \/etc\/fuse\.conf, which only root can add$/,
  ],
  ['fusermount3: user has no write access to mountpoint /m\n', 'ACCESS', /no write access.*folders of their own/],
  ['fusermount3: failed to open /dev/fuse: Permission denied\n', 'ACCESS', /chmod 666 \/dev\/fuse/],
  ["fusermount3: fuse device not found, try 'modprobe fuse' first\n", 'NOT_FOUND', /modprobe fuse/],
  ['fusermount3: mount failed: Operation not permitted\n', 'ACCESS', /Operation not permitted.*setuid/],
  ['fusermount3: too many FUSE filesystems mounted; mount_max=N can be set in /etc/fuse.conf', 'ACCESS', /mount_max/],
  ['fuse: failed to exec fusermount: No such file or directory\n', 'UNSUPPORTED', /apt install fuse3/],
  ['fusermount3: something new\nin two lines\n', 'IO', /^cannot mount on \/m: something new; in two lines$/],
  ['', 'IO', /did not say why/],
]

for (const [said, code, told] of CASES)
  t.test(said.trim() || 'nothing', async (t) => {
    const error = refusal('/m', said)
    t.equal(error.code, code)
    t.match(error.message, told)
    t.notMatch(error.message, /\n/)
  })

t.test('options with commas and backslashes', async (t) => {
  t.equal(joinOptions(['ro', 'fsname=/a,b\\c']), 'ro,fsname=/a\\,b\\\\c')
})
