// What our scripts use of ComfyUI's page; ComfyUI itself serves the modules.
export const api: EventTarget & {
  fetchApi(route: string, options?: RequestInit): Promise<Response>;
  fileURL(route: string): string;
};
