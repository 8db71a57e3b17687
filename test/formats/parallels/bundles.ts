/** Bundles for tests: the descriptor written as text. */

export const NIL = '00000000-0000-0000-0000-000000000000'
/** What Parallels calls the snapshot that is written to, by convention. */
export const TOP = '5fbaabe3-6958-40ff-92a7-860e329aab41'

export const guid = (n: number) => `00000000-0000-4000-8000-${String(n).padStart(12, '0')}`

export interface BundleParts {
  readonly sectors: number
  readonly storages: readonly {
    readonly start: number
    readonly end: number
    readonly block?: number
    readonly images: readonly (readonly [guid: string, type: string, file: string])[]
  }[]
  readonly shots: readonly (readonly [guid: string, parent: string])[]
  readonly topGuid?: string | undefined
}

export function bundleXml({ sectors, storages, shots, topGuid }: BundleParts): string {
  const images = (list: readonly (readonly [string, string, string])[]) =>
    list
      .map(([id, type, file]) => `<Image><GUID>{${id}}</GUID><Type>${type}</Type><File>${file}</File></Image>`)
      .join('\n')
  return `<?xml version='1.0' encoding='UTF-8'?>
<Parallels_disk_image Version="1.0">
  <Disk_Parameters>
    <Disk_size>${sectors}</Disk_size>
    <Cylinders>1</Cylinders><Heads>1</Heads><Sectors>${sectors}</Sectors>
    <Padding>0</Padding>
    <Encryption><Engine>{${NIL}}</Engine><Data></Data></Encryption>
  </Disk_Parameters>
  <StorageData>
${storages
  .map(
    ({ start, end, block = 8, images: list }) =>
      `<Storage><Start>${start}</Start><End>${end}</End><Blocksize>${block}</Blocksize>${images(list)}</Storage>`,
  )
  .join('\n')}
  </StorageData>
  <Snapshots>
    ${topGuid === undefined ? '' : `<TopGUID>{${topGuid}}</TopGUID>`}
    ${shots.map(([id, parent]) => `<Shot><GUID>{${id}}</GUID><ParentGUID>{${parent}}</ParentGUID></Shot>`).join('\n')}
  </Snapshots>
</Parallels_disk_image>
`
}
