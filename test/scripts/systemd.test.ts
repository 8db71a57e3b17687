/** The systemd unit: systemd itself reads it. */

import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

t.test('the unit template is understood', async (t) => {
  // An instance of it, since a template alone is not looked at whole.
  const unit = join(temporaryFolder(t), 'vdiskfs@mnt-x.service')
  copyFileSync('share/systemd/vdiskfs@.service', unit)
  const { code, out, err } = run('systemd-analyze', ['verify', '--man=no', unit])
  t.notMatch(out + err, /vdiskfs@mnt-x\.service/, 'nothing is said of it')
  t.equal(code, 0)
})
