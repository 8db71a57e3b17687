/** The table of commands: what the help says of each, and where its code is. */

import type { Arguments } from './arguments.js'
import type { Io } from './io.js'
import type { CommandName } from './options.js'

export interface Positional {
  readonly name: string
  readonly optional?: boolean
  /** All that it can be, where these are few words. */
  readonly choices?: readonly string[]
  readonly help: string
}

/** The code of a command: `run` returns the exit code, or throws. */
export interface CommandModule {
  run(args: Arguments, io: Io): number | Promise<number>
  /** What is printed instead of running it, where that is asked for by an option of its own: -o help. */
  answer?(args: Arguments): string | undefined
  /** What the help says behind the options. */
  details?(): string
}

export interface Command {
  readonly name: CommandName
  /** One line. */
  readonly summary: string
  readonly positionals: readonly Positional[]
  readonly examples: readonly string[]
  /** The exit code where it fails, if the usual one says something about the images here. */
  readonly failed?: number
  /** The exit code for wrong usage, likewise. */
  readonly misused?: number
  load(): Promise<CommandModule>
}

const IMAGE: Positional = { name: 'IMAGE', help: 'the image file' }
const MOUNTPOINT: Positional = { name: 'MOUNTPOINT', help: 'a folder' }

export const COMMANDS: readonly Command[] = [
  {
    name: 'mount',
    summary: 'show an image as one flat file, MOUNTPOINT/disk.raw',
    positionals: [IMAGE, MOUNTPOINT],
    examples: ['mount disk.vhd /mnt/x', 'mount -r --format raw disk.img /mnt/x'],
    load: () => import('./commands/mount.js'),
  },
  {
    name: 'umount',
    summary: 'end a mount; returns when the image is committed and closed',
    positionals: [MOUNTPOINT],
    examples: ['umount /mnt/x'],
    load: () => import('./commands/umount.js'),
  },
  {
    name: 'attach',
    summary: 'make an image a loop device with its partitions; prints its name',
    positionals: [IMAGE],
    examples: ['attach disk.vhd', 'attach -r --json disk.vhd'],
    load: () => import('./commands/attach.js'),
  },
  {
    name: 'detach',
    summary: 'end what attach made; returns when the image is committed and closed',
    positionals: [{ name: 'DEVICE', help: 'the loop device, or the image' }],
    examples: ['detach /dev/loop0', 'detach disk.vhd'],
    load: () => import('./commands/detach.js'),
  },
  {
    name: 'list',
    summary: 'what is mounted',
    positionals: [{ ...MOUNTPOINT, optional: true }],
    examples: ['list', 'list --stats /mnt/x', 'list --json'],
    load: () => import('./commands/list.js'),
  },
  {
    name: 'info',
    summary: 'the facts about an image',
    positionals: [IMAGE],
    examples: ['info disk.vhd', 'info --chain --json disk.vhd'],
    load: () => import('./commands/info.js'),
  },
  {
    name: 'map',
    summary: 'which parts of the disk are where',
    positionals: [IMAGE],
    examples: ['map disk.vhd', 'map --json disk.vhd'],
    load: () => import('./commands/map.js'),
  },
  {
    name: 'create',
    summary: 'make an empty image',
    positionals: [
      { name: 'IMAGE', help: 'the image to make; it must not exist' },
      { name: 'SIZE', optional: true, help: 'such as 512M, 1.5T or 0x40000000; without it, the size of the parent' },
    ],
    examples: ['create -f vhd disk.vhd 20G', 'create -f vhd -b base.vhd child.vhd'],
    load: () => import('./commands/create.js'),
  },
  {
    name: 'convert',
    summary: 'copy a disk into an image of another format',
    positionals: [
      { name: 'SOURCE', help: 'the image to read; it is not changed' },
      { name: 'TARGET', help: 'the image to make; one that exists is replaced when the new one is complete' },
    ],
    examples: ['convert -O qcow2 disk.vhd disk.qcow2', 'convert -O vhdx -o block_size=1M disk.img disk.vhdx'],
    load: () => import('./commands/convert.js'),
  },
  {
    name: 'compare',
    summary: 'whether two images show the same',
    positionals: [
      { name: 'FIRST', help: 'an image' },
      { name: 'SECOND', help: 'another one; the rest of the larger disk must be zeros' },
    ],
    examples: ['compare disk.vhd disk.qcow2', 'compare -s -f raw disk.img copy.img'],
    failed: 2,
    load: () => import('./commands/compare.js'),
  },
  {
    name: 'commit',
    summary: 'write what an image has into its parent, and empty it',
    positionals: [IMAGE],
    examples: ['commit child.vhd', 'commit -d overlay.qcow2'],
    load: () => import('./commands/commit.js'),
  },
  {
    name: 'rebase',
    summary: 'put an image over another parent; it shows what it did',
    positionals: [IMAGE],
    examples: ['rebase -b other.vhd child.vhd', 'rebase -u -b moved/base.vhdx child.vhdx'],
    load: () => import('./commands/rebase.js'),
  },
  {
    name: 'check',
    summary: 'look for faults in an image, and mend them',
    positionals: [IMAGE],
    examples: ['check disk.hds', 'check --repair all disk.hds'],
    misused: 1,
    load: () => import('./commands/check.js'),
  },
  {
    name: 'bitmap',
    summary: 'dirty bitmaps: what was changed since a backup',
    positionals: [
      {
        name: 'ACTION',
        choices: ['list', 'extents', 'add', 'clear', 'remove'],
        help: 'list, extents, add, clear, remove',
      },
      IMAGE,
      { name: 'NAME', optional: true, help: 'the bitmap; list needs none, add may choose one' },
    ],
    examples: ['bitmap list disk.hds', 'bitmap extents --json disk.hds NAME', 'bitmap add -g 64K disk.hds'],
    load: () => import('./commands/bitmap.js'),
  },
  {
    name: 'snapshot',
    summary: 'snapshots inside an image',
    positionals: [
      {
        name: 'ACTION',
        choices: ['list', 'create', 'apply', 'delete'],
        help: 'list; create one of the disk as it is; apply: go back to one; delete one',
      },
      IMAGE,
      { name: 'NAME', optional: true, help: 'the snapshot, by its name or id; list needs none' },
    ],
    examples: ['snapshot list disk.qcow2', 'snapshot create disk.qcow2 before-update', 'snapshot apply disk.qcow2 1'],
    load: () => import('./commands/snapshot.js'),
  },
  {
    name: 'resize',
    summary: 'give an image another size',
    positionals: [IMAGE, { name: 'SIZE', help: 'the new size, or the change with a sign: +10G, -512M' }],
    examples: ['resize disk.hds 200G', 'resize disk.hds +37M', 'resize --shrink disk.hds -1G'],
    load: () => import('./commands/resize.js'),
  },
  {
    name: 'completion',
    summary: 'the completion script for a shell',
    positionals: [{ name: 'SHELL', choices: ['bash', 'zsh', 'fish'], help: 'bash, zsh or fish' }],
    examples: ['completion bash', 'completion zsh'],
    load: () => import('./commands/completion.js'),
  },
]
