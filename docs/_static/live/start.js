// Beside each static figure of the live page: a button that starts it. Nothing is loaded before it is pressed.
(() => {
  const base = new URL('.', document.currentScript.src).href;
  function prepare(figure) {
    const bar = document.createElement('div');
    bar.className = 'live-start';
    bar.innerHTML = '<button type="button" class="live-button">Try it live</button><span>Loads 18 MB from this site, once. Everything is computed in this page: no picture leaves it.</span>';
    (figure.closest('a.image-reference') || figure).after(bar);
    const button = bar.firstElementChild, said = bar.lastElementChild;
    said.setAttribute('role', 'status');
    button.addEventListener('click', async () => {
      button.disabled = true;
      try {
        const {mount} = await import(base+'app.mjs');
        await mount(bar, figure, base, text => { said.textContent = text; });
      } catch (e) { button.disabled = false; said.textContent = String(e.message || e); bar.classList.add('live-wrong'); }
    });
  }
  function all() { document.querySelectorAll('img[src*="/live.png"]').forEach(prepare); }
  if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', all); else all();
})();
