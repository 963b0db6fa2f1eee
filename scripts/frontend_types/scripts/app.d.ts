// What our scripts use of ComfyUI's page; ComfyUI itself serves the modules.
interface SidebarTab {
  id: string;
  icon: string;
  title: string;
  tooltip: string;
  type: "custom";
  render(element: HTMLElement): void;
  destroy?(): void;
}

export const app: {
  registerExtension(extension: { name: string; setup?(): void | Promise<void>; [hook: string]: unknown }): void;
  extensionManager: {
    registerSidebarTab(tab: SidebarTab): void;
    toast: { add(message: { severity: string; summary: string; detail: string; life?: number }): void };
  };
};
