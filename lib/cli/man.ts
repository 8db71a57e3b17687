/** The manual page, rendered from the tables of commands and options as roff (man(7)). */

import { COMMANDS, type Command } from './commands.js'
import { synopsis } from './help.js'
import { type OptionSpec, optionsOf } from './options.js'

/** Text as roff takes it: no escapes, no requests, dashes that can be copied. */
export function roff(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replace(/^(['.])/gm, '\\&$1')
}

const bold = (text: string) => `\\fB${roff(text)}\\fR`
const italic = (text: string) => `\\fI${roff(text)}\\fR`

const FACTS: readonly (readonly [string, string])[] = [
  ['/run/vdiskfs, $XDG_RUNTIME_DIR/vdiskfs', 'the list of mounts, and the logs of their servers'],
  ['/etc/fuse.conf', 'user_allow_other lets ordinary users say --allow-other; see mount.fuse3(8)'],
]

const EXIT_CODES: readonly (readonly [string, string])[] = [
  ['0', 'done'],
  ['1', 'failed; one line on standard error says which file, what was found, and what to do'],
  ['2', 'wrong usage'],
]

/**
 * The page.
 * @param version of the program
 * @param details what the help of each command says behind its options, by the command's name
 */
export function manPage(version: string, details: ReadonlyMap<string, string>): string {
  return `${[
    `.TH VDISKFS 1 "" "vdiskfs ${roff(version)}"`,
    '.SH NAME',
    'vdiskfs \\- show a virtual disk image as one flat file',
    '.SH SYNOPSIS',
    ...COMMANDS.flatMap((command) => [`${bold('vdiskfs')} ${synopsisLine(command)}`, '.br']),
    `${bold('vdiskfs')} ${bold('--version')} | ${bold('--help')}`,
    '.SH DESCRIPTION',
    'Mounts a virtual disk image, so that every program reads and writes the disk in it as a file,',
    `${italic('MOUNTPOINT')}/disk.raw: losetup(8), mount(8), dd(1), fdisk(8), fsck(8) and the rest.`,
    'What is written to it is in the image; after an fsync(2), sync(1) or unmount it stays there whatever happens.',
    '.SH COMMANDS',
    ...COMMANDS.flatMap((command) => commandSection(command, details.get(command.name) ?? '')),
    '.SH MOUNTING BY mount(8) AND /etc/fstab',
    'With the helper mount.fuse.vdiskfs in /sbin, or with vdiskfs in /usr/bin or /usr/local/bin and mount.fuse3(8):',
    '.PP',
    '.EX',
    roff('mount -t fuse.vdiskfs disk.vhd /mnt/x -o ro'),
    roff('/images/disk.vhd  /mnt/x  fuse.vdiskfs  ro,allow_other,umask=022,nofail  0 0'),
    '.EE',
    '.SH EXIT STATUS',
    ...EXIT_CODES.flatMap(([code, text]) => tagged(bold(code), roff(text))),
    '.SH ENVIRONMENT',
    ...tagged(bold('DEBUG'), roff('vdiskfs:* shows on standard error, or in the log of a mount, what happens inside')),
    '.SH FILES',
    ...FACTS.flatMap(([name, text]) => tagged(italic(name), roff(text))),
    '.SH SEE ALSO',
    ['mount(8)', 'umount(8)', 'losetup(8)', 'qemu\\-img(1)', 'fuse(4)', 'mount.fuse3(8)'].join(', '),
  ].join('\n')}\n`
}

function synopsisLine(command: Command): string {
  return synopsis(command)
    .split(' ')
    .map((word) => (word === command.name ? bold(word) : /^\[?[A-Z]+\]?$/.test(word) ? italic(word) : roff(word)))
    .join(' ')
}

const tagged = (name: string, text: string): string[] => ['.TP', name, text]

function commandSection(command: Command, details: string): string[] {
  const summary = command.summary[0]!.toUpperCase() + command.summary.slice(1)
  return [
    `.SS ${synopsisLine(command)}`,
    `${roff(summary)}.`,
    ...command.positionals.flatMap(({ name, help }) => tagged(italic(name), roff(help))),
    ...optionsOf(command.name).flatMap((option) =>
      tagged(optionName(option), roff(option.repeats ? `${option.help} (may be repeated)` : option.help)),
    ),
    ...(details === '' ? [] : ['.PP', '.EX', roff(details.trimEnd()), '.EE']),
    '.PP',
    'Examples:',
    '.PP',
    '.EX',
    ...command.examples.map((example) => roff(`vdiskfs ${example}`)),
    '.EE',
  ]
}

function optionName({ name, short, value }: OptionSpec): string {
  const names = [...(short ? [`-${short}`] : []), `--${name}`].map(bold).join(', ')
  return value ? `${names} ${italic(value)}` : names
}
