/** `vdiskfs completion SHELL`. */

import type { Arguments } from '../arguments.js'
import { completionScript } from '../completion.js'
import type { Io } from '../io.js'

export function run(args: Arguments, io: Io): number {
  io.out(completionScript(args.positionals[0]!))
  return 0
}

export function details(): string {
  return `Where they go:
  bash  vdiskfs completion bash >/etc/bash_completion.d/vdiskfs
  zsh   vdiskfs completion zsh >/usr/local/share/zsh/site-functions/_vdiskfs
  fish  vdiskfs completion fish >~/.config/fish/completions/vdiskfs.fish
`
}
