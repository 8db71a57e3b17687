/** Cylinders, heads and sectors of a VHD, and the size of the disk that follows from them or from the footer. */

export const SECTOR = 512

/** Sectors at which the geometry ends: 127.5 GiB. Larger disks carry this one. */
export const MAX_GEOMETRY_SECTORS = 65535 * 16 * 255

/** The largest disk of the format, in bytes. (Specification, "Dynamic Hard Disk Image") */
export const MAX_DISK_SIZE = 2040 * 2 ** 30

/** As in the footer: "Disk Geometry". */
export interface Geometry {
  readonly cylinders: number
  readonly heads: number
  readonly sectorsPerTrack: number
}

/** Sectors up to which a track has 63 of them. */
const SMALL_DISK_SECTORS = 65535 * 16 * 63
const MAX_CYLINDERS_OF_SMALL = 1024

const MIN_HEADS = 4
const MAX_HEADS = 16

/** The geometry of a disk of so many sectors, rounded down. (Specification, "CHS Calculation") */
export function geometryOf(totalSectors: number): Geometry {
  const total = Math.min(totalSectors, MAX_GEOMETRY_SECTORS)
  if (total >= SMALL_DISK_SECTORS) return tracksOf(total, 255, MAX_HEADS)
  for (const sectorsPerTrack of [17, 31]) {
    const tracks = Math.floor(total / sectorsPerTrack)
    const heads = sectorsPerTrack === 17 ? Math.max(MIN_HEADS, Math.ceil(tracks / MAX_CYLINDERS_OF_SMALL)) : MAX_HEADS
    if (heads <= MAX_HEADS && tracks < heads * MAX_CYLINDERS_OF_SMALL) return tracksOf(total, sectorsPerTrack, heads)
  }
  return tracksOf(total, 63, MAX_HEADS)
}

function tracksOf(total: number, sectorsPerTrack: number, heads: number): Geometry {
  return { cylinders: Math.floor(Math.floor(total / sectorsPerTrack) / heads), heads, sectorsPerTrack }
}

export function geometrySectors({ cylinders, heads, sectorsPerTrack }: Geometry): number {
  return cylinders * heads * sectorsPerTrack
}

/** A number of sectors and a geometry that says it. */
export interface Rounded {
  readonly sectors: number
  readonly geometry: Geometry
}

/**
 * The next number of sectors, at least `totalSectors`, that a geometry says exactly; the same above the largest. The
 * geometry comes with it, since that of the number itself can be another one, which says less: 69615 is 819/5/17 for
 * disks of a few sectors more, and by itself 1023/4/17, which is 69564. QEMU finds the same.
 */
export function roundUpToGeometry(totalSectors: number): Rounded {
  if (totalSectors >= MAX_GEOMETRY_SECTORS) return { sectors: totalSectors, geometry: geometryOf(totalSectors) }
  for (let sectors = totalSectors; ; sectors++) {
    const geometry = geometryOf(sectors)
    const said = geometrySectors(geometry)
    if (said >= totalSectors) return { sectors: said, geometry }
  }
}

/** Programs that take, and mean, the geometry for the size of the disk; all others mean "Current Size". */
const GEOMETRY_CREATORS: readonly string[] = ['vpc ', 'vs  ', 'qemu']

/**
 * The size of the disk in bytes, a multiple of 512. A geometry at its maximum says nothing, and one of nothing neither.
 * @param creator the footer's "Creator Application"
 * @param currentSize the footer's "Current Size", bytes
 */
export function diskSize(creator: string, currentSize: number, geometry: Geometry): number {
  return meansGeometry(creator, geometry) ? geometrySectors(geometry) * SECTOR : currentSize - (currentSize % SECTOR)
}

/** True where the geometry, and not the footer's "Current Size", is the size of the disk. */
export function meansGeometry(creator: string, geometry: Geometry): boolean {
  const sectors = geometrySectors(geometry)
  return goesByGeometry(creator) && sectors !== 0 && sectors !== MAX_GEOMETRY_SECTORS
}

/** True for programs that would take a geometry for the size, so that it has to say it where it can. */
export function goesByGeometry(creator: string): boolean {
  return GEOMETRY_CREATORS.includes(creator)
}

/** True where a footer's geometry and "Current Size" can be of one disk: a geometry is rounded down to a cylinder. */
export function geometryAgrees(footer: Geometry & { readonly currentSize: number }): boolean {
  const sectors = geometrySectors(footer)
  const rest = footer.currentSize / SECTOR - sectors
  return sectors === MAX_GEOMETRY_SECTORS ? rest >= 0 : rest >= 0 && rest < footer.heads * footer.sectorsPerTrack
}
