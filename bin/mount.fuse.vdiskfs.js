#!/usr/bin/env node
// What mount(8) runs for the type fuse.vdiskfs when it finds it as /sbin/mount.fuse.vdiskfs:
//   mount.fuse.vdiskfs IMAGE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]
import { existsSync } from 'node:fs'

const entry = new URL('../dist/cli/mount-helper.js', import.meta.url)
if (existsSync(entry)) {
  const { mountHelper } = await import(entry.href)
  process.exitCode = await mountHelper(process.argv.slice(2))
} else {
  process.stderr.write('mount.fuse.vdiskfs: dist/cli/mount-helper.js is missing: build it first with npm run build\n')
  process.exitCode = 1
}
