/**
 * A new QCOW2 image: header, refcount table and blocks, L1 table, and with preallocation L2 tables and room for data,
 * one behind the other.
 */

import { resolve } from 'node:path'
import { openFile } from '../../storage/file.js'
import { VdiskError } from '../../util/errors.js'
import type { Backing, CreateContext } from '../driver.js'
import type { OptionSpec, OptionValues } from '../options.js'
import { storedName } from './backing.js'
import { encryptionOptions, type NewEncryption, newEncryption } from './create-encryption.js'
import { planImage, preallocate, writeRefcounts, writeTables } from './create-tables.js'
import { type Extension, ExtensionType, encodeBackingRecord, encodeCryptExtension } from './extensions.js'
import { featureNames } from './features.js'
import {
  Autoclear,
  additionalFields,
  CLUSTER_BITS,
  COMPRESSION_NAMES,
  Compatible,
  Compression,
  encodeHeader,
  type Header,
  Incompatible,
  MAX_BACKING_NAME,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  REFCOUNT_ORDER_V2,
} from './header.js'
import { ENTRY_BYTES } from './layout.js'
import { l1EntriesFor } from './open.js'

const DEFAULT_CLUSTER = 65536
const SECTOR = 512

export const createOptions: readonly OptionSpec[] = [
  {
    name: 'cluster_size',
    help: 'how much is allocated together: a power of two from 512 to 2M',
    type: 'size',
    default: DEFAULT_CLUSTER,
    min: 2 ** CLUSTER_BITS.min,
    max: 2 ** CLUSTER_BITS.max,
  },
  {
    name: 'compat',
    help: 'version 3 (1.1, v3), or 2 (0.10, v2) for very old programs',
    type: 'enum',
    values: ['1.1', '0.10', 'v3', 'v2'],
    default: '1.1',
  },
  {
    name: 'preallocation',
    help: 'what is there from the start: nothing, the tables, and host space for the data, or data written as zeros',
    type: 'enum',
    values: ['off', 'metadata', 'falloc', 'full'],
    default: 'off',
  },
  {
    name: 'lazy_refcounts',
    help: 'refcounts may be out of date after a crash and are then rebuilt',
    type: 'boolean',
    default: false,
  },
  {
    name: 'refcount_bits',
    help: 'width of a reference count: 1, 2, 4, 8, 16, 32 or 64',
    type: 'size',
    default: 16,
    min: 1,
    max: 64,
  },
  { name: 'extended_l2', help: 'allocate 32nds of clusters by themselves', type: 'boolean', default: false },
  {
    name: 'compression_type',
    help: 'how compressed clusters are compressed',
    type: 'enum',
    values: COMPRESSION_NAMES,
    default: 'zlib',
  },
  { name: 'data_file', help: 'another, new file for the data', type: 'string', default: undefined },
  {
    name: 'data_file_raw',
    help: 'keep the data file a raw image of the disk by itself',
    type: 'boolean',
    default: false,
  },
  ...encryptionOptions,
]

/** @throws USAGE for options that do not go together, and for disks that are too large for them */
export function createQcow2(context: CreateContext): void {
  const { storage, path } = context
  const encryption = (context.prepared as NewEncryption | undefined) ?? newEncryption(context)
  const header = newHeader(context, encryption)
  const { options, backing } = context
  const dataPath = options.data_file === undefined ? undefined : resolve(options.data_file as string)
  const asked = options.preallocation as string
  // What a raw file has is there from the start.
  const preallocation = options.data_file_raw && asked === 'off' ? 'metadata' : asked
  const plan = planImage(header, {
    preallocated: preallocation !== 'off',
    external: dataPath !== undefined,
    cryptLength: encryption.luks?.length ?? 0,
  })
  if (plan.tableClusters * 2 ** header.clusterBits > MAX_REFCOUNT_TABLE_BYTES)
    throw new VdiskError('USAGE', 'the disk is too large for a refcount table of 8 MiB: use larger clusters', { path })
  const placed: Header = {
    ...header,
    refcountTableOffset: plan.table,
    refcountTableClusters: plan.tableClusters,
    l1TableOffset: plan.l1,
    extensions: withCryptHeader(header.extensions, plan.crypt, encryption),
  }
  const bytes = encodeHeader(placed, path)
  storage.truncate(plan.end)
  writeRefcounts(storage, header, plan)
  if (encryption.luks) storage.write(encryption.luks, 0, encryption.luks.length, plan.crypt)
  if (preallocation !== 'off') writeTables(storage, header, plan, backing !== undefined)
  const size = header.size
  if (dataPath !== undefined) createDataFile(context, dataPath, size, preallocation)
  else preallocate(storage, plan.data, plan.end - plan.data, preallocation)
  storage.sync()
  storage.write(bytes, 0, bytes.length, 0)
}

function newHeader(context: CreateContext, encryption: NewEncryption): Header {
  const { path, size: wanted, options, backing, recordBacking } = context
  const clusterBits = Math.log2(options.cluster_size as number)
  const refcountOrder = Math.log2(options.refcount_bits as number)
  const version = options.compat === '0.10' || options.compat === 'v2' ? 2 : 3
  const usage = (text: string) => new VdiskError('USAGE', text, { path })
  if (!Number.isInteger(clusterBits))
    throw usage(`option cluster_size=${options.cluster_size}: expected a power of two`)
  if (!Number.isInteger(refcountOrder))
    throw usage(`option refcount_bits=${options.refcount_bits}: expected a power of two up to 64`)
  checkOptions(options, { version, clusterBits, refcountOrder, backing, usage })
  const compression = COMPRESSION_NAMES.indexOf(options.compression_type as 'zlib' | 'zstd')
  const incompatible = [
    ...(options.data_file === undefined ? [] : [Incompatible.DATA_FILE]),
    ...(compression === Compression.ZLIB ? [] : [Incompatible.COMPRESSION]),
    ...(options.extended_l2 ? [Incompatible.EXTENDED_L2] : []),
  ]
  const size = Math.ceil(wanted / SECTOR) * SECTOR
  const l1Size = l1EntriesFor(size, { clusterBits, incompatible })
  if (l1Size * ENTRY_BYTES > MAX_L1_BYTES)
    throw usage(`a disk of ${size} bytes is too large for clusters of ${2 ** clusterBits} bytes: use larger ones`)
  const backingName = backing && Buffer.from(storedName(backing.path, path))
  if (backingName && backingName.length > MAX_BACKING_NAME)
    throw usage(`the backing file's name has ${backingName.length} bytes: expected at most ${MAX_BACKING_NAME}`)
  const header: Header = {
    version,
    clusterBits,
    size,
    cryptMethod: encryption.method,
    l1Size,
    l1TableOffset: 0,
    refcountTableOffset: 0,
    refcountTableClusters: 0,
    nbSnapshots: 0,
    snapshotsOffset: 0,
    incompatible,
    compatible: options.lazy_refcounts ? [Compatible.LAZY_REFCOUNTS] : [],
    autoclear: options.data_file_raw ? [Autoclear.RAW_DATA_FILE] : [],
    refcountOrder,
    additional: version === 2 ? new Uint8Array() : additionalFields(compression),
    extensions: [
      // Its place is known later.
      ...withCryptHeader([], 0, encryption),
      ...newExtensions(backing, options.data_file as string | undefined),
      ...(recordBacking && backing?.record ? [encodeBackingRecord(backing.record)] : []),
    ],
    backingName,
  }
  return withFeatureNames(header, path)
}

interface Wanted {
  readonly version: number
  readonly clusterBits: number
  readonly refcountOrder: number
  readonly backing: Backing | undefined
  readonly usage: (text: string) => VdiskError
}

function checkOptions(options: OptionValues, { version, clusterBits, refcountOrder, backing, usage }: Wanted): void {
  const newer: readonly (readonly [boolean, string])[] = [
    [refcountOrder !== REFCOUNT_ORDER_V2, 'refcount_bits other than 16'],
    [options.lazy_refcounts === true, 'lazy_refcounts'],
    [options.extended_l2 === true, 'extended_l2'],
    [options.compression_type !== 'zlib', 'a compression_type'],
    [options.data_file !== undefined, 'data_file'],
  ]
  for (const [asked, name] of newer) if (asked && version === 2) throw usage(`${name} needs compat=1.1`)
  if (options.extended_l2 && clusterBits < CLUSTER_BITS.minExtended)
    throw usage('extended_l2 needs a cluster_size of at least 16K')
  if (options.data_file_raw && options.data_file === undefined) throw usage('data_file_raw needs data_file')
  if (options.data_file_raw && backing) throw usage('data_file_raw and a backing file do not go together')
  if (options.preallocation !== 'off' && backing && !options.extended_l2)
    throw usage('preallocation and a backing file go together with extended_l2 only')
}

/** What others call a format. */
const FORMAT_NAMES: Readonly<Record<string, string>> = { vhd: 'vpc' }

const textExtension = (type: number, value: string): Extension => ({ type, data: Buffer.from(value) })

/** The extension that says what format the backing file has. */
export function backingFormat({ format }: Backing): Extension {
  return textExtension(ExtensionType.BACKING_FORMAT, FORMAT_NAMES[format] ?? format)
}

function newExtensions(backing: Backing | undefined, dataFile: string | undefined): Extension[] {
  return [
    ...(backing ? [backingFormat(backing)] : []),
    // QEMU looks for a relative one in the folder that it is started in.
    ...(dataFile === undefined ? [] : [textExtension(ExtensionType.DATA_FILE, resolve(dataFile))]),
  ]
}

/** With the extension that says where the LUKS header is, where there is one. */
function withCryptHeader(extensions: readonly Extension[], offset: number, { luks }: NewEncryption): Extension[] {
  const others = extensions.filter(({ type }) => type !== ExtensionType.CRYPT_HEADER)
  return luks ? [encodeCryptExtension({ offset, length: luks.length }), ...others] : others
}

/** The table of names helps other programs to say what they do not know; a small cluster may have no room for it. */
function withFeatureNames(header: Header, path: string): Header {
  if (header.version === 2) return header
  const named = { ...header, extensions: [...header.extensions, featureNames()] }
  try {
    encodeHeader(named, path)
    return named
  } catch (error) {
    if (error instanceof VdiskError && error.code === 'USAGE') return header
    throw error
  }
}

/** A new file, which must not exist: what is in it would be lost. */
function createDataFile(context: CreateContext, path: string, size: number, preallocation: string): void {
  const storage = openFile(path, { readOnly: false, create: true })
  context.madeFile?.(path)
  try {
    if (preallocation !== 'off') storage.truncate(size)
    preallocate(storage, 0, size, preallocation)
    storage.sync()
  } finally {
    storage.close()
  }
}
