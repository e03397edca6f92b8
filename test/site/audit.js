// SPDX-License-Identifier: Apache-2.0
// What a browser knows of the page that it shows.
(() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\d.]+/g).map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (light + 0.05) / (dark + 0.05);
  };
  const background = (element) => {
    for (let e = element; e !== null; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/^rgba\(.*, 0\)$/.test(color)) {
        return color;
      }
    }
    return "rgb(255, 255, 255)";
  };
  const lowContrast = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (texts.currentNode.data.trim() === "" || !element.checkVisibility({ checkOpacity: true })) {
      continue;
    }
    const [color, behind] = [getComputedStyle(element).color, background(element)];
    const ratio = contrast(color, behind);
    if (!(ratio >= 4.5)) {
      lowContrast.add(`${element.tagName} "${texts.currentNode.data.trim().slice(0, 40)}": ${color} on ${behind}`);
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  return {
    links: [...document.querySelectorAll("a[href]")].map((a) => a.href),
    ids,
    repeatedIDs: ids.filter((id, i) => ids.indexOf(id) !== i),
    brokenImages: [...document.images].filter((i) => !i.complete || i.naturalWidth === 0).map((i) => i.src),
    noAlternative: [...document.images].filter((i) => !i.alt).map((i) => i.src),
    headings: document.querySelectorAll("h1").length,
    mains: document.querySelectorAll("main").length,
    width: document.documentElement.scrollWidth,
    lowContrast: [...lowContrast],
  };
})()
