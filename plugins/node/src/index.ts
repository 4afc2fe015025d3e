/** What plugins written in TypeScript import. */

export type { Plugin } from './plugins'
export { Fields, PostRequest, PostResponse, Request, Response } from './http'
